"""`mcbeit doctor`: versions, devices, what would go wrong and what to do about it."""

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mcbeit.doctor import Report

Tables = dict[str, list[tuple[str, ...]]]  # title -> rows; the cells of the last column may hold several lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what is installed, what there is to compute with, and what would go wrong.

    Exits with 1 if something is wrong for certain (a clash, a broken or outdated package), else with 0.

    Example: mcbeit doctor > doctor.txt
    """
    from mcbeit.doctor import diagnose
    from mcbeit.machine import gather

    report = diagnose(gather())
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    elif sys.stdout.isatty():
        _print_tables(tables(report))
    else:
        click.echo(as_text(tables(report)))
    ctx.exit(0 if report.healthy else 1)


def tables(report: "Report") -> Tables:
    """The report as rows of text."""
    versions = [
        (row.name, row.version or f"not installed, for {row.needed_for}: {row.install}") for row in report.versions
    ]
    findings = [(finding.level, f"{finding.what}\n-> {finding.do}") for finding in report.findings]
    return {
        "versions": [*versions],
        "devices": [*report.devices.items()],
        "findings": [*findings] or [("ok", "nothing that would go wrong")],
    }


def as_text(tables: Tables) -> str:
    """Aligned lines without decoration, one row each, for a pipe or a bug report."""
    lines = []
    for title, rows in tables.items():
        width = max(len(row[0]) for row in rows)
        lines += ["", title, *(f"  {row[0]:{width}}  {' '.join(row[1].splitlines())}" for row in rows)]
    return "\n".join(lines[1:])


def _print_tables(tables: Tables) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for title, rows in tables.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
