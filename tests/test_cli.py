"""The `mcbeit` command: its group, its help, and how mistakes are told. Each command has a test of its own."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import mcbeit
from mcbeit.cli.main import COMMANDS, LazyGroup, cli
from mcbeit.errors import ConfigError, McbeitError

CLI_FOLDER = Path(__file__).parents[1] / "cli"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """`command` and everything below it, with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            subcommand = command.get_command(context, name)
            assert subcommand is not None
            yield from walk((*path, name), subcommand)


def every_command() -> list[tuple[tuple[str, ...], click.Command]]:
    return list(walk((), cli))


def test_commands__are_the_modules_of_the_folder() -> None:
    modules = {f"mcbeit.cli.{path.stem}" for path in CLI_FOLDER.glob("*.py")} - {
        "mcbeit.cli.__init__",
        "mcbeit.cli.main",
        "mcbeit.cli.tables",
    }
    assert modules == set(COMMANDS.values())


def test_help__lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(COMMANDS)
    assert all(len(line.split()) > 1 for line in listed)


def test_every_command__has_help_and_says_what_its_options_do() -> None:
    for path, command in every_command():
        result = run(*path, "--help")
        assert result.exit_code == 0, path
        assert command.help, path
        assert command.get_short_help_str(), path
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (path, option.name)


def test_every_command__has_at_most_six_options() -> None:
    """The rest is key=value."""
    for path, command in every_command():
        options = [option.name for option in command.params if isinstance(option, click.Option)]
        assert len(options) <= 6, (path, options)


def test_short_help_option() -> None:
    assert run("-h").stdout == run("--help").stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.split()[-1] == mcbeit.__version__


@pytest.mark.parametrize("arguments", [["trian"], ["--nothing"], ["doctor", "--nothing"], ["doctor", "surplus"]])
def test_unknown__is_a_usage_error(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.stderr
    assert result.stdout == ""


def failing_group(error: Exception) -> click.Group:
    """A group like `mcbeit` with one command that raises."""

    class One(LazyGroup):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
            @click.command()
            def fail() -> None:
                raise error

            return fail

    return One("mcbeit")


def test_mcbeit_error__is_one_message_and_exit_2() -> None:
    result = CliRunner().invoke(failing_group(ConfigError("demo: 1 mistake\n  epochs: too few")), ["fail"])
    assert result.exit_code == 2
    assert result.stderr == "Error: demo: 1 mistake\n  epochs: too few\n"
    assert result.stdout == ""


@pytest.mark.parametrize("error", [McbeitError, *McbeitError.__subclasses__()])
def test_mcbeit_error__every_kind(error: type[McbeitError]) -> None:
    result = CliRunner().invoke(failing_group(error("told")), ["fail"])
    assert (result.exit_code, result.stderr) == (2, "Error: told\n")


def test_other_error__keeps_its_traceback() -> None:
    """A bug of ours is not dressed up as a mistake of the user's."""
    result = CliRunner().invoke(failing_group(ZeroDivisionError("bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)
