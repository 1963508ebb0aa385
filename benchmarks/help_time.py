"""CPU seconds of `mcbeit --help` and of the help of every command: python benchmarks/help_time.py

A help that takes longer than the budget has most likely come to import something heavy. Exits with 1 if one does.
"""

import resource
import subprocess
import sys
from collections.abc import Iterator

import click

from mcbeit.cli.main import cli

BUDGET_SECONDS = 0.3
REPEATS = 3


def commands(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
    """The words that call `command` and everything below it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if subcommand := command.get_command(context, name):
                yield from commands((*path, name), subcommand)


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one run, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Print one line for each help: the best of a few runs."""
    print(f"{cpu_seconds(['-c', '']):.2f} s  python itself")
    slow = False
    for path in commands((), cli):
        arguments = ["-m", "mcbeit.cli.main", *path, "--help"]
        best = min(cpu_seconds(arguments) for _ in range(REPEATS))
        slow |= best > BUDGET_SECONDS
        print(f"{best:.2f} s  {' '.join(['mcbeit', *path, '--help'])}{'  over budget' * (best > BUDGET_SECONDS)}")
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
