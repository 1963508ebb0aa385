"""How accuracy holds up: tables of corruptions by severities, their means, and these relative to clean accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from mcbeit.bench.result import Curve, Grid, Metric, accuracy, mean_of, ratio_of
from mcbeit.errors import BenchError

Cell = tuple[str, int]  # a corruption and its severity


class Judged(NamedTuple):
    """Some images, and which of them were classified rightly."""

    images: Int64[np.ndarray, " image"]  # their numbers, ascending
    correct: Bool[np.ndarray, " image"]


class Table(NamedTuple):
    """Everything about one set of corruptions."""

    metrics: dict[str, Metric]
    grid: Grid
    images: Int64[np.ndarray, " image"]  # that all corruptions have
    shares: Float[np.ndarray, " image"]  # of right answers of these


def judge_table(
    title: str,
    name: str,
    cells: Mapping[Cell, Judged],
    *,
    seed: int,
    counted: Sequence[str] = (),
    clean: Judged | None = None,
) -> Table:
    """Accuracies of every cell and their means: over severities, then over corruptions, by `counted` if there are any.

    Means are of the images that all cells have, and of these alone is their bootstrap. `clean`, the same images without
    corruption, is what relative numbers are relative to.
    """
    images = _common([*cells.values(), *([] if clean is None else [clean])])
    if not len(images):
        raise BenchError(f"{title}: there is no image that can be read in every corruption")
    right = {cell: _of(judged, images) for cell, judged in cells.items()}
    rows, severities = list(dict.fromkeys(row for row, _ in cells)), sorted({severity for _, severity in cells})
    meant = [row for row in rows if row in counted or not counted]
    means = {f"{name}, {row}": _mean(right[cell] for cell in cells if cell[0] == row) for row in rows}
    means[name] = _mean(means[f"{name}, {row}"] for row in meant)
    clean_right = None if clean is None else _of(clean, images)
    metrics = {f"{name}, {row}, severity {severity}": accuracy(one.correct) for (row, severity), one in cells.items()}
    for severity in severities:
        if there := [right[row, severity] for row in meant if (row, severity) in cells]:
            metrics[f"{name}, severity {severity}"] = mean_of(_mean(there), seed=seed, over="images")
    for full, shares in means.items():
        metrics[full] = mean_of(shares, seed=seed, over="images")
        relative = None if clean_right is None else ratio_of(shares, clean_right, seed=seed)
        if relative is not None:
            metrics[f"relative {full}"] = relative
    return Table(metrics, _grid(title, name, rows, severities, metrics), images, means[name])


def severity_curves(
    cells: Mapping[Cell, Judged], clean: Judged, families: Mapping[str, Sequence[str]]
) -> tuple[Curve, ...]:
    """A chart per family with a line per corruption, from severity 0, which is clean."""
    severities = sorted({severity for _, severity in cells})
    curves = []
    for family, members in families.items():
        lines = {
            one: (float(clean.correct.mean()), *(float(cells[one, step].correct.mean()) for step in severities))
            for one in members
        }
        curves.append(Curve(title=family, x_label="severity", x=(0.0, *map(float, severities)), lines=lines))
    return tuple(curves)


def _common(every: Sequence[Judged]) -> Int64[np.ndarray, " image"]:
    first, *others = every
    return reduce(np.intersect1d, [one.images for one in others], first.images)


def _of(judged: Judged, images: Int64[np.ndarray, " image"]) -> Float[np.ndarray, " image"]:
    return judged.correct[np.searchsorted(judged.images, images)].astype(np.float64)


def _mean(shares: Iterable[Float[np.ndarray, " image"]]) -> Float[np.ndarray, " image"]:
    return np.mean(list(shares), axis=0)


def _grid(title: str, name: str, rows: Sequence[str], severities: Sequence[int], metrics: Mapping[str, Metric]) -> Grid:
    """Rows are corruptions and their mean; columns their mean, also relative to clean images, and severities."""
    lines = {row: f"{name}, {row}" for row in rows} | {"mean": name}
    columns = {"mean": "{}", "relative": "relative {}"}
    columns |= {f"severity {severity}": f"{{}}, severity {severity}" for severity in severities}
    found = {header: [form.format(line) for line in lines.values()] for header, form in columns.items()}
    known = {header: [one if one in metrics else None for one in column] for header, column in found.items()}
    shown = {header: column for header, column in known.items() if any(column)}
    return Grid(title=title, rows=tuple(lines), columns=tuple(shown), metrics=tuple(zip(*shown.values(), strict=True)))
