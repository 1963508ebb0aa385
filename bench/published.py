"""Published numbers, and whether a measured one may be held against them.

The numbers stand in published.yaml, each with its source and with what the source states of how it was measured. A
result is compared only if it is known to be of the same protocol and the same images; otherwise the comparison lists
what differs, and gives no verdict.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mcbeit.bench.result import Metric, Result, Selection, Z
from mcbeit.config import Config, read_values, validate
from mcbeit.errors import ConfigError

FILE = Path(__file__).with_name("published.yaml")
PROTOCOL = "task.protocol."
BEST: Selection = "best on the test images"
UNKNOWN = "unknown"

Conditions = dict[str, Any]  # a dotted path in a result -> what must stand there
Task = Literal["knn", "linear", "logreg", "finetune", "detection", "segmentation", "retrieval"]
Verdict = Literal["within noise", "above", "below", "not comparable"]


class Tolerance(Config):
    """How far the published number may be from a repetition of itself, 95 times of 100."""

    value: float = Field(gt=0, lt=1)
    why: str


class PublishedNumber(Config):
    """A number, where it stands, and how it was measured."""

    task: Task
    data: str  # a key of `PublishedFile.data`
    metric: str  # as results name it
    value: float = Field(gt=0, lt=1)
    tolerance: Tolerance
    source: str
    url: str
    verified: bool  # whether it was read there, for this very model
    note: str | None = None
    setting: str | None = None  # for people; None: the source does not tell
    selection: Selection | None = None  # None: the source does not tell
    conditions: Conditions = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tells_what_is_missing(self) -> "PublishedNumber":
        if not self.verified and self.note is None:
            raise ValueError("a number that is not verified needs a note that says why")
        return self


class Pretraining(Config):
    """What a model was trained on without labels."""

    images: str
    epochs: int | None = None  # None: the source does not tell


class PublishedModel(Config):
    """A model that others have measured."""

    method: str
    backbone: str
    pretraining: Pretraining
    intermediate_finetuning: bool = False  # whether the weights have since seen labels, before any task
    conditions: Conditions  # of all its numbers
    numbers: dict[str, PublishedNumber] = Field(min_length=1)


class KnownImages(Config):
    """How many images a set has, if it is the one that others have measured on."""

    title: str
    splits: dict[str, int]
    num_classes: int | None = None


class PublishedFile(Config):
    """published.yaml."""

    data: dict[str, KnownImages]
    parts: dict[str, Any]  # what numbers share, which they take by YAML's anchors
    models: dict[str, PublishedModel]

    @model_validator(mode="after")
    def _knows_the_images(self) -> "PublishedFile":
        named = {number.data for model in self.models.values() for number in model.numbers.values()}
        if unknown := sorted(named - set(self.data)):
            raise ValueError(f"data tells nothing of {', '.join(unknown)}")
        return self

    @property
    def rows(self) -> list["PublishedRow"]:
        """Every number with its model."""
        return [
            PublishedRow(
                **dict(number) | {"conditions": model.conditions | number.conditions},
                key=f"{name}.{part}",
                model=name,
                method=model.method,
                backbone=model.backbone,
                pretraining=model.pretraining,
                intermediate_finetuning=model.intermediate_finetuning,
            )
            for name, model in self.models.items()
            for part, number in model.numbers.items()
        ]


class PublishedRow(PublishedNumber):
    """A number together with what it is of."""

    key: str
    model: str  # as `reproduces` names it
    method: str
    backbone: str
    pretraining: Pretraining
    intermediate_finetuning: bool


class PublishedComparison(Config):
    """A measured number beside a published one."""

    row: PublishedRow
    measured: float
    band: float  # by which they may differ, see `noise_band`
    mismatches: tuple[str, ...]  # what forbids to compare them, in words

    @property
    def delta(self) -> float:
        """Measured minus published."""
        return self.measured - self.row.value

    @property
    def verdict(self) -> Verdict:
        """None of the first three as long as anything differs."""
        if self.mismatches:
            return "not comparable"
        if abs(self.delta) <= self.band:
            return "within noise"
        return "above" if self.delta > 0 else "below"

    def cells(self) -> list[str]:
        """For a table: what it is, published, measured, difference, noise and verdict; numbers in percent."""
        row = self.row
        return [
            f"{row.model}, {row.task}, {row.metric} ({row.source})",
            percent(row.value),
            f"{100 * self.measured:.2f}",
            f"{100 * self.delta:+.2f}",
            f"± {100 * self.band:.2f}",
            "; ".join([self.verdict, *self.mismatches]),
        ]


@cache
def read_published() -> PublishedFile:
    """The numbers that come with the package."""
    return validate(PublishedFile, read_values(FILE), origin=FILE.name)


def check_reproduces(name: str) -> None:
    """Raise ConfigError if nothing is published of a model."""
    known = list(read_published().models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"reproduces={name}: there are no published numbers of it{hint}\nmodels: {', '.join(known)}")


def compare_published(result: Result, rows: Sequence[PublishedRow] | None = None) -> list[PublishedComparison]:
    """Hold a result against what is published of its model, task, images and metrics.

    Empty if the result is not said to be of a published model. `rows` stand for those of the file.
    """
    published = read_published()
    asked = (result.model.reproduces, result.task.name, result.data.name)
    return [
        PublishedComparison(
            row=row,
            measured=result.metrics[row.metric].value,
            band=noise_band(row.tolerance.value, result.metrics[row.metric]),
            mismatches=tuple(_mismatches(result, row, published.data[row.data])),
        )
        for row in (published.rows if rows is None else rows)
        if (row.model, row.task, row.data) == asked and row.metric in result.metrics
    ]


def noise_band(tolerance: float, metric: Metric) -> float:
    """By how much a measured and a published number may differ by chance: both uncertainties, added in quadrature.

    `tolerance` is that of the published number; that of the measured one is half of its 95 % interval, or as many
    standard errors, or nothing if it has neither. An interval of other test images is wider than need be, as both
    numbers are of the same ones, so the band errs to the side of noise.
    """
    if metric.interval is not None:
        return math.hypot(tolerance, (metric.interval[1] - metric.interval[0]) / 2)
    return math.hypot(tolerance, Z * (metric.standard_error or 0.0))


def published_table() -> list[list[str]]:
    """All numbers, the header first."""
    rows = [
        [row.key, row.data, row.metric, percent(row.value), "yes" if row.verified else "no", row.source]
        for row in read_published().rows
    ]
    return [["number", "images", "metric", "published, %", "verified", "source"], *rows]


def percent(value: float) -> str:
    """With two decimals, or one if the second is 0."""
    return f"{100 * value:.2f}".removesuffix("0")


def _mismatches(result: Result, row: PublishedRow, known: KnownImages) -> Iterator[str]:
    if not row.verified:
        yield f"the published number is not verified: {row.note}"
    yield from _other_settings(result, row)
    yield from _other_conditions(result, row)
    yield from _other_images(result, known)


def _other_settings(result: Result, row: PublishedRow) -> Iterator[str]:
    task, selection = result.task, result.metrics[row.metric].selection
    if task.preset != "paper":
        yield f"preset is {task.preset}, not paper"
    if changed := [one for one in task.overrides if _path(one, task.name) not in row.conditions]:
        yield f"overrides: {', '.join(changed)}"
    if selection != row.selection and (row.selection is not None or selection == BEST):
        yield f"selection: {selection}" + ("" if row.selection is None else f", published: {row.selection}")
    if result.model.spec.precision == "int8":
        yield "the model is rounded to int8"


def _other_conditions(result: Result, row: PublishedRow) -> Iterator[str]:
    if not any(path.startswith(PROTOCOL) for path in row.conditions):
        yield "published.yaml has no condition on the settings of the task" + (
            "" if row.setting is None else f": {row.setting}"
        )
    facts = {"task": result.task.model_dump(mode="json"), "model": result.model.model_dump(mode="json")}
    for path, wanted in row.conditions.items():
        if (found := _at(facts, path)) != wanted:
            yield f"{path} is {found}, not {wanted}"


def _path(assignment: str, task: str) -> str:
    """The place in a result of what `TASK.key=value` has set."""
    return PROTOCOL + assignment.partition("=")[0].removeprefix(f"{task}.")


def _at(facts: Any, path: str) -> Any:
    """What stands at a dotted path."""
    for name in path.split("."):
        if not isinstance(facts, dict) or name not in facts:
            return UNKNOWN
        facts = facts[name]
    return facts


def _other_images(result: Result, known: KnownImages) -> Iterator[str]:
    if result.task.limit is not None:
        yield f"limit={result.task.limit} images per split"
    for name, split in result.data.splits.items():
        manifest, num_unreadable = split.manifest, split.used.num_unreadable
        if num_unreadable:
            yield f"{_images(num_unreadable)} of {name} cannot be read"
        if manifest.num_lost:
            yield f"{_images(manifest.num_lost)} of {name} lost in damaged shards"
        if name not in known.splits:
            yield f"{known.title} has no {name}"
        elif result.task.limit is None:  # with a limit there are fewer, of course
            if manifest.num_images != known.splits[name]:
                yield f"{name} has {_images(manifest.num_images)}, {known.title} has {known.splits[name]:,}"
            if manifest.num_classes and known.num_classes not in (None, manifest.num_classes):
                yield f"{name} has {manifest.num_classes:,} classes, {known.title} has {known.num_classes:,}"


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"
