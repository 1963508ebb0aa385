"""Results as text: one line each, and tables of models against tasks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mcbeit.bench.model import KIND_NAMES
from mcbeit.bench.result import Grid, Metric, Result
from mcbeit.config import flatten

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


def row_names(results: Sequence[Result]) -> list[str]:
    """What each is called where there are all of these: its model, and how that differs from others of its name."""
    names = [label(result) + "".join(f", seed {seed}" for seed in result.seeds[:1] if seed) for result in results]
    specs = [one.model.spec.model_dump(mode="json", exclude={"name"}) for one in results]
    facts = [flatten({**spec, **one.model.computed}) for spec, one in zip(specs, results, strict=True)]
    plain = [{key: value for key, value in one.items() if key != "fingerprint"} for one in facts]
    return _told_apart(_told_apart(names, plain), [{"weights": one["fingerprint"][:8]} for one in facts])


def column_names(results: Sequence[Result]) -> list[str]:
    """What each has measured, and how that differs from others of the same task."""
    names = [
        f"{one.task.name} {one.primary}" + (f", {one.task.preset}" if one.task.preset != "paper" else "")
        for one in results
    ]
    facts = [flatten({"limit": one.task.limit, "version": one.task.version, **one.task.protocol}) for one in results]
    asked = [{key: value for key, value in one.items() if key.rpartition(".")[2] != "seed"} for one in facts]
    return _told_apart(names, asked)


def _told_apart(names: Sequence[str], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each name with those of its facts in which others of the same name differ."""
    found = []
    for name, own in zip(names, facts, strict=True):
        others = [other for same, other in zip(names, facts, strict=True) if same == name]
        keys = dict.fromkeys(key for other in others for key in other)
        differing = [key for key in keys if any(other.get(key) != own.get(key) for other in others)]
        told = [f"{key.rpartition('.')[2]} {_word(own.get(key))}" for key in differing]
        found.append(", ".join([name, *dict.fromkeys(told)]))
    return found


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _table(name: str, results: Sequence[Result]) -> Table:
    rows_of, columns_of = row_names(results), column_names(results)
    repeated = Counter(zip(rows_of, columns_of, strict=True))
    rows_of = [  # of other images of the same name
        f"{row}, {one.run_id.rpartition('-')[2]}" if repeated[row, column] > 1 else row
        for one, row, column in zip(results, rows_of, columns_of, strict=True)
    ]
    columns, models = dict.fromkeys(columns_of), dict(zip(rows_of, results, strict=True))
    found = {
        (row, column): percent(one.metrics[one.primary])
        for one, row, column in zip(results, rows_of, columns_of, strict=True)
    }
    header = ["model", "dim", *columns]
    rows = [
        [model, str(one.model.spec.dim), *(found.get((model, column), "") for column in columns)]
        for model, one in models.items()
    ]
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


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in cells)
    line = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, line, *rows))
