"""`mcbeit report`: what a pretraining run has learned, as a table and as a page."""

from typing import TYPE_CHECKING

import click

from mcbeit.cli.tables import print_table

if TYPE_CHECKING:
    from mcbeit.bench.run_report.report import Report


@click.command
@click.argument("model")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--fresh", is_flag=True, help="Measure again, even if this checkpoint has been measured before.")
@click.option("--demand", is_flag=True, help="Exit with 1 if pretraining adds less than demanded to random features.")
def command(model: str, assignments: tuple[str, ...], fresh: bool, demand: bool) -> None:
    """Judge the last checkpoint of a pretraining run, finished or not, or other weights.

    Prints the k-NN and linear accuracies of raw pixels, of the untrained and of the pretrained backbone, all measured
    on the run's held-out images, and writes them with many figures to RUN/report.html and RUN/report.json. Without
    labelled images there is no table, only the page.

    MODEL may also be a .safetensors file, a checkpoint of the official code (.pth) or timm:NAME. There is no page of
    these; KEY=VALUE names the images, of the sections data, eval, preprocess.

    \b
    mcbeit report runs/demo
    mcbeit report beit.pth data.source=data/emoji/train eval.queries=data/emoji/val
    """
    from mcbeit.bench.run_report.report import report_model

    found = report_model(model, assignments, fresh=fresh)
    show(found)
    if demand and found.comparison is None:
        click.echo("--demand: without labels there is nothing to judge", err=True)
    if demand and (found.comparison is None or not found.comparison.is_met):
        raise click.exceptions.Exit(1)


def show(found: "Report") -> None:
    """Print the table, drawn in a terminal and as plain text elsewhere, then its notes and where the page is."""
    if found.table:
        print_table(found.table[0], found.table[1:])
    for note in [*found.notes, *([] if found.page is None else [f"page: {found.page}"])]:
        click.echo(note)
