"""Results as text: one line each, and tables of models against tasks."""

from collections.abc import Sequence
from typing import NamedTuple

from mcbeit.bench.model import KIND_NAMES
from mcbeit.bench.result import Grid, Metric, Result

NOT_CHOSEN = ("none", "last")  # selections that choose nothing


class Table(NamedTuple):
    """All results on one set of images: a row per model, a column per task."""

    title: str
    cells: list[list[str]]  # the header first
    notes: list[str]


def percent(metric: Metric) -> str:
    """The number with half of its interval: `84.12 ± 0.32`."""
    if metric.interval is None:
        return f"{100 * metric.value:.2f}"
    low, high = metric.interval
    return f"{100 * metric.value:.2f} ± {50 * (high - low):.2f}"


def conditions(result: Result) -> list[str]:
    """What keeps a result from being compared with published numbers, as far as it tells itself."""
    found = []
    if result.task.preset != "paper":
        found.append(f"preset {result.task.preset}")
    if result.task.limit is not None:
        found.append(f"at most {result.task.limit:,} images per split")
    if result.task.overrides:
        found.append(" ".join(result.task.overrides))
    unreadable = sum(split.used.num_unreadable + split.manifest.num_lost for split in result.data.splits.values())
    if unreadable:
        found.append(f"{unreadable:,} images cannot be read")
    return found


def headline(result: Result) -> str:
    """One line for people."""
    metric = result.metrics[result.primary]
    asides = [*conditions(result)] + ([] if metric.selection in NOT_CHOSEN else [f"chosen on the {metric.selection}"])
    count = "" if metric.num_samples is None else f" of {metric.num_samples:,} images"
    text = f"{result.task.name} on {result.data.name}, {label(result)}: {result.primary} {percent(metric)} %{count}"
    return f"{text} ({'; '.join(asides)})" if asides else text


def label(result: Result) -> str:
    """What a model is called."""
    return f"{result.model.source} [{KIND_NAMES[result.model.kind]}]"


def tables(results: Sequence[Result]) -> list[Table]:
    """A table per set of images, in the order in which these come."""
    names = dict.fromkeys(result.data.name for result in results)
    return [_table(name, [result for result in results if result.data.name == name]) for name in names]


def grid_cells(grid: Grid, result: Result) -> list[list[str]]:
    """A grid of a result in percent, the header first."""
    rows = (
        [name, *("" if one is None else percent(result.metrics[one]) for one in found)]
        for name, found in zip(grid.rows, grid.metrics, strict=True)
    )
    return [["", *grid.columns], *rows]


def _table(name: str, results: Sequence[Result]) -> Table:
    columns = dict.fromkeys(map(_column, results))
    models = dict.fromkeys(map(_row, results))
    found = {(_row(result), _column(result)): percent(result.metrics[result.primary]) for result in results}
    header = ["model", "dim", *columns]
    dims = {_row(result): str(result.model.spec.dim) for result in results}
    rows = [[model, dims[model], *(found.get((model, column), "") for column in columns)] for model in models]
    images = "; ".join(dict.fromkeys(map(_images, results)))
    notes = [
        f"{name}: {images} images ({results[0].data.layout}) at {results[0].data.place}; percent, ± half of the 95 % "
        "interval"
    ]
    return Table(name, [header, *rows], [*notes, *dict.fromkeys(note for result in results for note in _notes(result))])


def _images(result: Result) -> str:
    return ", ".join(f"{split.used.num_used:,} {key}" for key, split in result.data.splits.items())


def _notes(result: Result) -> list[str]:
    metric, told = result.metrics[result.primary], conditions(result)
    notes = [f"{result.task.name}: {'; '.join(told)}: not comparable with published numbers"] if told else []
    if metric.selection not in NOT_CHOSEN:
        notes.append(f"{result.task.name}: the best setting was chosen on the {metric.selection}")
    return notes


def _column(result: Result) -> str:
    short = "" if result.task.preset == "paper" else f", {result.task.preset}"
    return f"{result.task.name} {result.primary}{short}"


def _row(result: Result) -> str:
    seeds = [seed for seed in result.seeds if seed]
    return label(result) + (f", seed {seeds[0]}" if seeds else "")


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    line = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, line, *rows))
