"""What was measured, with everything that it depends on: one JSON file per task, model and data.

All metrics are fractions unless their name says more. Files are checked against the schema when they are written and
when they are read; they are there whole or not at all.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64
from pydantic import Field, ValidationError

from mcbeit.atomic import finite, write_json
from mcbeit.bench.manifest import Manifest, Used
from mcbeit.config import Config
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import BenchError
from mcbeit.preprocess import Preprocess

SCHEMA_VERSION: Literal[1] = 1
SUFFIX = ".json"
HASH = "sha256"  # key of a file: that of all the others
Z = 1.959964  # standard errors to either side of a 95 % interval
Selection = Literal["none", "last", "best on the test images", "held-out images"]
ModelKind = Literal["torch", "onnx", "served", "fake", "pixels"]
Preset = Literal["smoke", "short", "paper"]


class Metric(Config):
    """A number with its uncertainty."""

    value: float
    standard_error: float | None = None
    interval: tuple[float, float] | None = None  # 95 %
    uncertainty: str | None = None  # what the interval is of: other draws of the test images, other seeds
    selection: Selection = "none"  # by what the best of several was chosen
    num_samples: int | None = None


class Curve(Config):
    """A metric against something, one line or several."""

    title: str
    x_label: str
    x: tuple[float, ...]
    lines: dict[str, tuple[float, ...]]  # by name; a single one needs none


class Grid(Config):
    """Some metrics, as a table."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[tuple[str | None, ...], ...]  # their names, by row and column


class TaskFacts(Config):
    """What was asked."""

    name: str
    version: int = Field(ge=1)  # of its protocol: numbers of different versions are not comparable
    preset: Preset
    overrides: tuple[str, ...] = ()  # what was changed of the preset
    protocol: dict[str, Any]  # every setting, resolved
    limit: int | None = None  # of images per split; None: all


class DetectorSpec(Config):
    """What a trained detector is, which makes no vectors."""

    name: str
    fingerprint: str  # SHA-256 over weights, preprocessing and settings
    dim: int = Field(ge=1)  # of the backbone
    num_classes: int = Field(ge=1)
    precision: Literal["fp32"] = "fp32"  # of the weights
    preprocess: Preprocess


class ModelFacts(Config):
    """Of whom."""

    source: str  # as it was named
    kind: ModelKind
    spec: EncoderSpec | DetectorSpec  # name, fingerprint, preprocessing, pooling, layer, precision
    computed: dict[str, Any] = Field({})  # batch size, precision of products, provider, threads
    notes: tuple[str, ...] = ()
    reproduces: str | None = None  # the published model that it is said to be


class Split(Config):
    """Which images, and what became of them."""

    manifest: Manifest
    used: Used


class DataFacts(Config):
    """On what."""

    name: str
    place: str
    layout: str
    seed: int = 0  # of the images that a limit left
    classes: tuple[str, ...] = ()
    splits: dict[str, Split]


class Answers(Config):
    """Whether each test image was answered rightly, packed: what makes two results comparable image by image."""

    metric: str
    count: int = Field(ge=0)
    bits: str  # base64 of numpy.packbits

    @classmethod
    def of(cls, metric: str, correct: Bool[np.ndarray, " image"]) -> "Answers":
        """Pack answers."""
        return cls(metric=metric, count=len(correct), bits=base64.b64encode(np.packbits(correct).tobytes()).decode())

    def unpack(self) -> Bool[np.ndarray, " image"]:
        """The answers."""
        packed = np.frombuffer(base64.b64decode(self.bits), np.uint8)
        return np.unpackbits(packed, count=self.count).astype(bool)


class Result(Config):
    """One measurement."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: TaskFacts
    model: ModelFacts
    data: DataFacts
    seeds: tuple[int, ...] = ()
    primary: str  # the metric to quote
    metrics: dict[str, Metric] = Field(min_length=1)
    per_class: dict[str, tuple[float | None, ...]] = Field({})  # None: the class has no test image
    confusion: tuple[tuple[int, ...], ...] | None = None  # counts; rows are the truth
    curves: tuple[Curve, ...] = ()
    grids: tuple[Grid, ...] = ()
    answers: Answers | None = None
    remarks: tuple[str, ...] = ()  # what must be read with the numbers
    seconds: dict[str, float] = Field({})  # by phase
    images_per_second: float | None = None  # of embedding, where nothing came from the cache
    finished_at: str = ""  # UTC
    environment: dict[str, Any] = Field({})
    artifacts: dict[str, str] = Field({})  # file beside the results -> its SHA-256

    @property
    def run_id(self) -> str:
        """A name that any change of task, model or data changes: results of one name can stand for each other."""
        return run_id(
            self.task, self.model, self.data.name, {name: one.manifest for name, one in self.data.splits.items()}
        )


def run_id(task: TaskFacts, model: ModelFacts, data: str, manifests: Mapping[str, Manifest]) -> str:
    """See `Result.run_id`: it can be told before anything is measured."""
    known = {
        "task": task.model_dump(mode="json", exclude={"overrides"}),
        "model": [model.kind, model.spec.model_dump(mode="json"), model.computed],
        "data": {name: one.model_dump(mode="json") for name, one in manifests.items()},
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return "-".join([task.name, _slug(data), model.kind, _slug(model.spec.name), digest[:10]])


def write_result(folder: Path, result: Result) -> Path:
    """Write a result under its name. Raises BenchError if the disk does not take it."""
    path = folder / f"{result.run_id}{SUFFIX}"
    checked = Result.model_validate(json.loads(result.model_dump_json()))
    values = finite(checked.model_dump(mode="json"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**values, HASH: _hash(values)})
    except OSError as error:
        raise BenchError(
            f"the result '{path}' cannot be written: {error.strerror or error}; make room, and go on with --resume"
        ) from error
    return path


def read_result(path: Path) -> Result:
    """Read a result. Raises BenchError if it is none, or if it was changed."""
    again = "remove it, and measure again"
    try:
        values = json.loads(path.read_bytes())
        told = values.pop(HASH, None) if isinstance(values, dict) else None  # none in files of before there was one
        result = Result.model_validate(values)
    except OSError as error:
        raise BenchError(f"there is no result at '{path}': {error.strerror or error}") from error
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        where = ".".join(map(str, first["loc"])) or "the file"
        mistakes = f"{first['msg']}{f', and {more} more' if more else ''}"
        raise BenchError(f"'{path}' is no result of mcbeit bench: {where}: {mistakes}; {again}") from error
    except ValueError as error:
        raise BenchError(f"'{path}' is no result of mcbeit bench: it is no JSON: {error}; {again}") from error
    if told not in (None, _hash(values)):
        raise BenchError(f"the result '{path}' was changed after it was measured; {again}")
    return result


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_results(folder: Path) -> list[Result]:
    """All results of a folder that `mcbeit bench run` wrote, earliest first. Raises BenchError if there are none."""
    paths = sorted((folder / "results").glob(f"*{SUFFIX}"))
    if not paths:
        raise BenchError(
            f"'{folder}' holds no results; make some: mcbeit bench run -t knn -m MODEL --data NAME=PATH -o {folder}"
        )
    return sorted(map(read_result, paths), key=lambda result: result.finished_at)


def accuracy(correct: Bool[np.ndarray, " image"], selection: Selection = "none") -> Metric:
    """The share of right answers, with Wilson's interval for other draws of as many test images."""
    count, value = len(correct), float(np.mean(correct))
    middle = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(value * (1 - value) / count + Z**2 / (4 * count**2))
    return Metric(
        value=value,
        standard_error=math.sqrt(value * (1 - value) / count),
        interval=(max(0.0, middle - half), min(1.0, middle + half)),
        uncertainty="binomial",
        selection=selection,
        num_samples=count,
    )


def mean_of(
    values: Float[np.ndarray, " query"], *, seed: int, draws: int = 1000, over: Literal["queries", "images"] = "queries"
) -> Metric:
    """A mean over queries, with the percentiles of its bootstrap; queries without a value (nan) are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        raise BenchError("no query has anything to be found, so there is nothing to measure")
    means = np.array([values[rows].mean() for rows in _draws(len(values), seed, draws)])
    return bootstrapped(float(values.mean()), means, over, len(values))


def ratio_of(
    values: Float[np.ndarray, " image"], than: Float[np.ndarray, " image"], *, seed: int, draws: int = 1000
) -> Metric | None:
    """One mean divided by another of the same images, which the bootstrap draws together; None if the other is 0."""
    if not than.any():
        return None
    sums = [(values[rows].sum(), than[rows].sum()) for rows in _draws(len(values), seed, draws)]
    ratios = np.array([above / below for above, below in sums if below])
    return bootstrapped(float(values.sum() / than.sum()), ratios, "images", len(values))


def _draws(count: int, seed: int, draws: int) -> Iterator[Int64[np.ndarray, " row"]]:
    rng = np.random.default_rng(seed)
    return (rng.integers(count, size=count) for _ in range(draws))


def bootstrapped(
    value: float, found: Float[np.ndarray, " draw"], over: str, num_samples: int, selection: Selection = "none"
) -> Metric:
    """A number with the percentiles of what it is on other draws of what it is `over`."""
    low, high = np.percentile(found, [2.5, 97.5])
    return Metric(
        value=value,
        standard_error=float(found.std(ddof=1)),
        interval=(float(low), float(high)),
        uncertainty=f"bootstrap over {over}, {len(found)} draws",
        selection=selection,
        num_samples=num_samples,
    )


def by_class(
    correct: Bool[np.ndarray, " image"] | Float[np.ndarray, " image"], labels: np.ndarray, num_classes: int
) -> tuple[float | None, ...]:
    """The share of right answers among the images of each class."""
    found = [correct[labels == label] for label in range(num_classes)]
    return tuple(float(one.mean()) if len(one) else None for one in found)


def confusion_counts(truth: np.ndarray, guess: np.ndarray, num_classes: int) -> tuple[tuple[int, ...], ...]:
    """How often each class was taken for each."""
    counts = np.bincount(truth * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)
    return tuple(tuple(map(int, row)) for row in counts)


def _slug(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z._]+", "-", name).strip("-")[-48:] or "model"
