"""`mcbeit bench report`: the results of a folder as Markdown, and as one page that needs no other file."""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

import mcbeit
from mcbeit.atomic import write_bytes
from mcbeit.bench.figures import page_style
from mcbeit.bench.published import PublishedComparison, compare_published
from mcbeit.bench.result import DetectorSpec, Result, read_results
from mcbeit.bench.result_figures import Bar, bar_chart, confusion_uri, metric_chart
from mcbeit.bench.summary import (
    Table,
    column_names,
    conditions,
    grid_cells,
    label,
    markdown_table,
    percent,
    row_names,
    tables,
)
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import BenchError

MAX_CLASSES = 40  # of which a table of classes is shown


class Written(NamedTuple):
    """What was written, and the tables for people at a terminal."""

    tables: list[Table]
    published: list[PublishedComparison]
    markdown: Path
    page: Path


def write_report(folder: Path) -> Written:
    """Write FOLDER/report.md and FOLDER/report.html. Raises BenchError if there are no results."""
    results = read_results(folder)
    shown, published = tables(results), [row for result in results for row in compare_published(result)]
    written = Written(shown, published, folder / "report.md", folder / "report.html")
    try:
        write_bytes(written.markdown, markdown(results, shown, published).encode())
        write_bytes(written.page, page(folder, results, shown, published).encode())
    except OSError as error:
        raise BenchError(f"the report of '{folder}' cannot be written: {error.strerror or error}; make room") from error
    return written


def markdown(results: Sequence[Result], shown: Sequence[Table], published: Sequence[PublishedComparison]) -> str:
    """The tables with what has to be read with them."""
    parts = [
        f"## {one.title}\n\n{markdown_table(one.cells)}\n\n" + "".join(f"- {note}\n" for note in one.notes)
        for one in shown
    ]
    parts += [_markdown_grids(result) for result in results if result.grids]
    if published:
        parts.append(f"## Published numbers\n\n{markdown_table(published_cells(published))}\n")
    return f"# Benchmark\n\nMeasured by mcbeit {mcbeit.__version__}.\n\n" + "\n".join(parts)


def _markdown_grids(result: Result) -> str:
    grids = [f"{grid.title}, percent:\n\n{markdown_table(grid_cells(grid, result))}\n\n" for grid in result.grids]
    return "".join([f"## {_title(result)}\n\n", *grids, *(f"- {remark}\n" for remark in result.remarks)])


def published_cells(rows: Sequence[PublishedComparison]) -> list[list[str]]:
    """Published beside measured, the header first."""
    header = ["published model, task, metric", "published", "measured", "difference", "noise", "verdict"]
    return [header, *([*row.cells()] for row in rows)]


def page(
    folder: Path, results: Sequence[Result], shown: Sequence[Table], published: Sequence[PublishedComparison]
) -> str:
    """The page as HTML."""
    template = files("mcbeit.bench").joinpath("results.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        style=page_style(),
        name=folder.resolve().name,
        version=mcbeit.__version__,
        tables=shown,
        published=published_cells(published) if published else [],
        charts={table.title: _charts([one for one in results if one.data.name == table.title]) for table in shown},
        results=[_details(folder, result) for result in results],
    )


def _charts(results: Sequence[Result]) -> list[Any]:
    """A chart of bars per task that several models have."""
    names, columns = row_names(results), column_names(results)
    return [
        bar_chart(
            f"{column}, %",
            [
                Bar(name, one.metrics[one.primary])
                for one, name, own in zip(results, names, columns, strict=True)
                if own == column
            ],
        )
        for column, count in Counter(columns).items()
        if count > 1
    ]


def _details(folder: Path, result: Result) -> dict[str, Any]:
    classes = result.data.classes
    in_grids = {name for grid in result.grids for row in grid.metrics for name in row}
    return {
        "title": _title(result),
        "id": result.run_id,
        "metrics": [
            [name, f"{percent(metric)} %", metric.selection, metric.uncertainty or ""]
            for name, metric in result.metrics.items()
            if name == result.primary or name not in in_grids
        ],
        "grids": [(grid.title, grid_cells(grid, result)) for grid in result.grids],
        "conditions": conditions(result),
        "remarks": result.remarks,
        "curves": [metric_chart(one) for one in result.curves if len(one.x) > 1],  # one point is in the table
        "confusion": confusion_uri(result.confusion) if result.confusion else None,
        "mistakes": _mistakes(result),
        "classes": _classes(result) if 1 < len(classes) <= MAX_CLASSES else [],
        "neighbours": _pictures(folder, result, "query"),
        "scenes": _pictures(folder, result, "scene"),
        "facts": _facts(result),
        "protocol": json.dumps(result.task.protocol, indent=2),
        "spec": result.model.spec.model_dump_json(indent=2),
    }


def _title(result: Result) -> str:
    return f"{result.task.name} on {result.data.name}: {label(result)}"


def _classes(result: Result) -> list[tuple[str, float]]:
    """The classes of the primary metric, the hardest first."""
    found = result.per_class.get(result.primary, ())
    known = [(name, value) for name, value in zip(result.data.classes, found, strict=False) if value is not None]
    return sorted(known, key=lambda pair: pair[1])


def _mistakes(result: Result, most: int = 6) -> list[str]:
    """The classes that are taken for each other most often."""
    if result.confusion is None:
        return []
    names = result.data.classes
    pairs = [
        (count, f"{names[i]} taken for {names[j]}: {count}")
        for i, row in enumerate(result.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return [text for _, text in sorted(pairs, key=lambda pair: -pair[0])[:most]]


def _pictures(folder: Path, result: Result, key: str) -> list[dict[str, Any]]:
    """Those pictures of a result that have a key."""
    found = [folder / "results" / name for name in result.artifacts if name.startswith("pictures/")]
    rows = [row for path in found if path.is_file() for row in json.loads(path.read_text(encoding="utf-8"))]
    return [row for row in rows if key in row]


def _of_model(spec: EncoderSpec | DetectorSpec) -> list[tuple[str, str]]:
    """What comes out of it, and what goes in."""
    seen = spec.preprocess
    if isinstance(spec, DetectorSpec):
        objects = f"of {spec.num_classes} class{'es' * (spec.num_classes != 1)}"
        return [("objects", objects), ("input", f"{seen.image_size} px, the longer side")]
    return [
        ("vector", f"{spec.dim} numbers, {spec.pooling} of layer {spec.layer} of {spec.num_layers}"),
        ("input", f"{seen.image_size} px, {seen.resize}, crop {seen.crop_fraction:g}, {seen.interpolation}"),
    ]


def _facts(result: Result) -> list[tuple[str, str]]:
    spec, rate = result.model.spec, result.images_per_second
    images = "; ".join(
        f"{split.used.num_used:,} {name}"
        + (f" ({split.used.num_unreadable} unreadable)" if split.used.num_unreadable else "")
        for name, split in result.data.splits.items()
    )
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    return [
        ("images", f"{images}; {result.data.layout}"),
        ("model", f"{spec.name}, fingerprint {spec.fingerprint[:16]}, {spec.precision}"),
        *_of_model(spec),
        ("task", f"{result.task.name}, version {result.task.version}, preset {result.task.preset}"),
        ("time", seconds + (f"; {rate:,.1f} images/s embedded" if rate else "")),
    ]
