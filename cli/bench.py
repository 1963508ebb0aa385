"""`mcbeit bench`: how good features are, on tasks that others report too."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcbeit.cli.tables import print_table

if TYPE_CHECKING:
    from mcbeit.bench.result import Preset

OUT = click.Path(path_type=Path, file_okay=False)


@click.group
def command() -> None:
    """Measure models downstream: runs, weights, exported graphs, and services that are running.

    \b
    mcbeit bench run -t knn,logreg -m runs/demo --data fashion-mnist=data/fashion-mnist -o runs/bench/demo
    mcbeit bench report runs/bench/demo
    """


@command.command("run")
@click.argument("assignments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-t", "--task", "tasks", multiple=True, required=True, help="One or more, with commas; see `bench ls`.")
@click.option("-m", "--model", "models", multiple=True, required=True, help="May be given several times.")
@click.option("--data", multiple=True, required=True, metavar="NAME=PATH", help="May be given several times.")
@click.option(
    "--preset",
    type=click.Choice(["smoke", "short", "paper"]),
    default="paper",
    show_default=True,
    help="How much: a minute, what a laptop can do, or the protocol of publications.",
)
@click.option("-o", "--out", type=OUT, required=True, help="The folder of results and of features.")
@click.option("--resume", is_flag=True, help="Keep the results and features that are there, and go on.")
def run(
    assignments: tuple[str, ...],
    tasks: tuple[str, ...],
    models: tuple[str, ...],
    data: tuple[str, ...],
    preset: "Preset",
    out: Path,
    resume: bool,
) -> None:
    """Measure tasks x models x images; each result is written as soon as it is there.

    MODEL is a run folder, a folder that `mcbeit export` wrote, a .safetensors file, a checkpoint of the official code
    (.pth), timm:NAME, the http:// address of `mcbeit serve`, or `pixels`, a baseline. KEY=VALUE sets pooling, layer,
    image_size, batch_size, threads, data.*, limit (images per split), seed, workers (of Ray), reproduces, and TASK.* :
    see docs/bench.md.

    \b
    mcbeit bench run -t knn,logreg -m runs/demo -m runs/demo/fp32 -m http://127.0.0.1:8000 \\
        --data fashion-mnist=data/fashion-mnist -o runs/bench/demo
    mcbeit bench run -t knn -m timm:vit_small_patch16_224 --data imagenet=/data/imagenet -o runs/bench/s 'knn.k=[20]'
    """
    from mcbeit.bench.harness import make_plan
    from mcbeit.bench.harness import run as measure
    from mcbeit.bench.summary import headline
    from mcbeit.embed import PROMISE
    from mcbeit.errors import Interrupted
    from mcbeit.stop import StopRequest

    plan = make_plan(tasks, models, data, preset=preset, out=out.expanduser(), assignments=assignments)
    try:
        for result in measure(plan, resume=resume, stop=StopRequest(PROMISE), tell=tell):
            click.echo(headline(result))
    except Interrupted as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(128 + (stopped.signal or signal.SIGINT))


def tell(text: str) -> None:
    """What a person should hear while it goes on."""
    click.echo(text, err=True)


@command.command("ls")
@click.option("--published", is_flag=True, help="List the published numbers that reports compare with.")
def ls(published: bool) -> None:
    """List the tasks, or the published numbers."""
    from mcbeit.bench.published import published_table
    from mcbeit.bench.tasks import TASKS

    if published:
        header, *rows = published_table()
        print_table(header, rows)
        return
    cells = [[task.name, task.needs, ", ".join(task.splits), task.title] for task in TASKS.values()]
    print_table(["task", "needs", "images", "what it measures"], cells)


@command.command("report")
@click.argument("folder", type=OUT)
def report(folder: Path) -> None:
    """Print the results of a folder, and write FOLDER/report.md and FOLDER/report.html."""
    from mcbeit.bench.results_page import published_cells, write_report

    written = write_report(folder.expanduser())
    for table in written.tables:
        print_table(table.cells[0], table.cells[1:])
        for note in table.notes:
            click.echo(note)
    if written.published:
        header, *rows = published_cells(written.published)
        print_table(header, rows)
    click.echo(f"page: {written.page}")


@command.command("compare")
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
def compare(one: Path, other: Path) -> None:
    """Compare two folders of results, or two results, measured by the same protocol on the same images."""
    from mcbeit.bench.comparison import compare_results

    header, *rows = compare_results(one.expanduser(), other.expanduser())
    print_table(header, rows)


@command.command("verify")
@click.argument("folder", type=OUT)
def verify(folder: Path) -> None:
    """Check that results are whole and unchanged, and that their images are still the same."""
    from mcbeit.bench.verification import verify_folder

    findings = verify_folder(folder.expanduser())
    for finding in findings:
        click.echo(str(finding))
    if any(finding.is_wrong for finding in findings):
        raise click.exceptions.Exit(1)
