"""`mcbeit`: a click group whose commands are imported only when they are named."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from mcbeit import __version__
from mcbeit.errors import McbeitError

COMMANDS = {
    "bench": "mcbeit.cli.bench",
    "data": "mcbeit.cli.data",
    "doctor": "mcbeit.cli.doctor",
    "embed": "mcbeit.cli.embed",
    "export": "mcbeit.cli.export",
    "index": "mcbeit.cli.index",
    "replay": "mcbeit.cli.replay",
    "report": "mcbeit.cli.report",
    "serve": "mcbeit.cli.serve",
    "train": "mcbeit.cli.train",
    "viz": "mcbeit.cli.viz",
    "weights": "mcbeit.cli.weights",
    "whiten": "mcbeit.cli.whiten",
}


class UserError(click.ClickException):
    """A mistake that the user can mend: its message is printed, without a traceback."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group that finds its commands by module name and turns our own errors into one message and exit 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The command names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `mcbeit.cli.NAME` and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a McbeitError becomes a click error without a traceback."""
        try:
            return super().invoke(ctx)
        except McbeitError as error:
            raise UserError(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="mcbeit")
def cli() -> None:
    """Self-supervised visual features by mc-BEiT: pretrain on your own images and see how good they are."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the `mcbeit` command."""
    cli.main(args=arguments if arguments is None else list(arguments), prog_name="mcbeit")


if __name__ == "__main__":
    main(sys.argv[1:])
