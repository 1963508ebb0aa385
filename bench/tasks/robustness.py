"""Robustness: how the accuracy of frozen features holds up when the images change.

One classifier, fitted on the clean training images, is asked about clean validation images, about corrupted ones, about
other images of the same classes (ImageNet-A, -R, -V2, -C), and is held against better labels of the same images (ReaL).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int64
from pydantic import Field, PositiveFloat, model_validator

from mcbeit.bench.corruptions import (
    CORRUPTION_NAMES,
    CORRUPTIONS,
    LEFT_OUT,
    SEVERITIES,
    CorruptionName,
    Family,
    ndimage,
)
from mcbeit.bench.data import SPLITS, BenchData
from mcbeit.bench.features import Features
from mcbeit.bench.manifest import joined_used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.real_labels import RealLabels, read_real_labels
from mcbeit.bench.result import Grid, accuracy, by_class
from mcbeit.bench.shift_scores import Cell, Judged, judge_table, severity_curves
from mcbeit.bench.shifted_sets import IMAGENET_C, WHOLE, ShiftedLayout, class_numbers
from mcbeit.bench.tasks.frozen_classifier import Classes, FrozenClassifier, LogisticClassifier, NearestClassifier
from mcbeit.bench.tasks.knn import USUAL_K
from mcbeit.bench.tasks.logreg import PRESETS as LOGREG_PRESETS
from mcbeit.bench.tasks.logreg import StrengthConfig
from mcbeit.bench.tasks.task import BenchTask, Outcome, TaskConfig
from mcbeit.bench.treatment import Treatment
from mcbeit.config import UserPath
from mcbeit.errors import BenchError
from mcbeit.image_files import COLOURS

CLEAN, CORRUPTED, REAL = "top1, clean", "top1, corrupted", "top1, ReaL labels"
TAKEN = {*SPLITS["labelled"], "clean", "corrupted", "ReaL labels"}
Severity = Annotated[int, Field(ge=SEVERITIES[0], le=SEVERITIES[-1])]


class RobustnessConfig(TaskConfig):
    """The settings of `robustness`."""

    corruptions: tuple[CorruptionName, ...] = CORRUPTION_NAMES
    severities: tuple[Severity, ...] = Field(SEVERITIES, min_length=1)
    size: int = Field(224, ge=32)  # pixels at which validation images are corrupted, for every model the same
    num_images: int | None = Field(None, ge=2)  # of every corruption and every other set; None: all
    sets: dict[str, UserPath] = Field({})  # other images, by the name that results give them
    real_labels: UserPath | None = None  # real.json, or `timm` for the copy in that package
    classifier: Literal["knn", "logreg"] = "knn"
    k: int = Field(USUAL_K, ge=1)  # of knn
    temperature: PositiveFloat = 0.07
    logreg: StrengthConfig = StrengthConfig()  # as the task logreg has them

    @model_validator(mode="after")
    def _measures_something(self) -> "RobustnessConfig":
        if not (self.corruptions or self.sets or self.real_labels):
            raise ValueError("no corruptions, sets or real_labels: nothing to measure")
        if taken := self.sets.keys() & TAKEN:
            raise ValueError(f"sets: '{min(taken)}' means something else in results; choose another name")
        if parted := [name for name in self.sets if "," in name]:
            raise ValueError(f"sets: '{parted[0]}' would be a part of a set in results; choose a name without a comma")
        return self

    def other_images(self, data: BenchData) -> dict[str, BenchData]:
        """See `TaskConfig`."""
        return {
            name: BenchData(name, place, self.limit(data), data.seed, data.channels, "shifted")
            for name, place in self.sets.items()
        }

    def limit(self, data: BenchData) -> int | None:
        """How many images of every corruption and set are used at most."""
        return min((one for one in (data.limit, self.num_images) if one is not None), default=None)


def run(model: BenchModel, data: BenchData, config: RobustnessConfig) -> Outcome:
    """Fit on `train`, measure on `val` and on everything that is shifted."""
    sets, real = _checked(data, config)
    train, val = model.features(data, "train"), model.features(data, "val")
    assert val.labels is not None
    before = time.monotonic()
    judge = _Judge(model, data, config, _fit(train, config))
    fitted = time.monotonic() - before
    predicted = judge.classifier.predict(val.vectors)
    shown = [CORRUPTED] * bool(config.corruptions) + [f"top1, {name}" for name in sets] + [REAL] * (real is not None)
    outcome = Outcome(
        primary=shown[0],
        metrics={CLEAN: accuracy(predicted == val.labels)},
        used={},
        remarks=judge.classifier.remarks,
    )
    outcome.note_features(train=train, val=val)
    if config.corruptions:
        judge.corrupted(outcome)
    for one in sets.values():
        judge.other_set(outcome, one)
    if real is not None:
        _judge_real_labels(outcome, real, val, predicted)
    if sets or real is not None:
        outcome.grids = (_overview([CLEAN, *shown]), *outcome.grids)
    outcome.seconds |= {"fit": fitted, "shifted features": judge.seconds}
    return outcome


class _OtherSet(NamedTuple):
    """Other images, and which of the classes of the training images theirs are."""

    data: BenchData
    layout: ShiftedLayout
    parts: Sequence[str]
    classes: Classes


def _checked(data: BenchData, config: RobustnessConfig) -> tuple[dict[str, _OtherSet], RealLabels | None]:
    """The other sets and labels; what can be wrong with them is found before anything is embedded."""
    if data.channels != COLOURS:
        raise BenchError(f"robustness is of images of {COLOURS} channels, and data.channels={data.channels}")
    if config.corruptions:
        ndimage()
    sets, trained = {}, data.open("train").labels
    assert trained is not None
    for name, other in config.other_images(data).items():
        found = other.shifted()
        classes = class_numbers(other.place, found, data.classes)
        if not np.isin(trained, classes).any():
            raise BenchError(f"{name}: no training image that is used has one of its classes; use more of them")
        sets[name] = _OtherSet(other, found.layout, found.parts, classes)
    real = None if config.real_labels is None else read_real_labels(config.real_labels)
    if real is not None:
        val = replace(data, limit=None).open("val")
        assert val.labels is not None
        real.check([val.name(i) for i in range(len(val))], val.labels, len(data.classes))
    return sets, real


def _fit(train: Features, config: RobustnessConfig) -> FrozenClassifier:
    if config.classifier == "knn":
        return NearestClassifier(train, config.k, config.temperature, key="robustness.k")
    return LogisticClassifier(train, config.logreg, config.seed, key="robustness.logreg")


def _judge_real_labels(
    outcome: Outcome, real: RealLabels, val: Features, predicted: Int64[np.ndarray, " image"]
) -> None:
    """The same predictions by other labels; images without any are left out."""
    correct = real.judge(val.names, predicted)
    outcome.metrics[REAL] = accuracy(correct)
    outcome.remarks += (
        f"ReaL: {len(correct):,} of {len(val.names):,} validation images have labels (SHA-256 {real.sha256[:16]})",
    )


def _overview(names: Sequence[str]) -> Grid:
    """The number of each set of images."""
    rows = tuple(name.removeprefix("top1, ") for name in names)
    return Grid(title="Sets of images", rows=rows, columns=("top1",), metrics=tuple((name,) for name in names))


class _Judge:
    """A fitted classifier, asked about all images that are shifted."""

    def __init__(self, model: BenchModel, data: BenchData, config: RobustnessConfig, classifier: FrozenClassifier):
        self.model, self.data, self.config, self.classifier = model, data, config, classifier
        self.seconds = 0.0  # that the vectors took

    def corrupted(self, outcome: Outcome) -> None:
        """Validation images, corrupted here."""
        config = self.config
        data = replace(self.data, limit=config.limit(self.data))
        every = np.arange(len(self.data.classes))
        clean, features = self._judge(data, "val", self._treatment(size=config.size), every)
        cells: dict[Cell, Judged] = {}
        for name, severity in product(dict.fromkeys(config.corruptions), sorted(set(config.severities))):
            treatment = self._treatment(size=config.size, corruption=name, severity=severity, seed=config.seed)
            cells[name, severity], _ = self._judge(data, "val", treatment, every)
        table = judge_table("Corruptions", CORRUPTED, cells, seed=config.seed, clean=clean)
        outcome.metrics |= {f"{CLEAN}, at {config.size} px": accuracy(clean.correct)} | table.metrics
        outcome.grids += (table.grid,)
        outcome.curves = severity_curves(cells, clean, _families(cells))
        assert features.labels is not None
        truth = features.labels[np.searchsorted(clean.images, table.images)]
        outcome.per_class = {CORRUPTED: by_class(table.shares, truth, len(every))}
        outcome.remarks += (
            f"{len(clean.images):,} validation images, corrupted at {config.size} px in the manner of ImageNet-C but "
            f"without {', '.join(LEFT_OUT)}, by other code: not ImageNet-C, and not comparable with any mCE",
        )

    def other_set(self, outcome: Outcome, one: _OtherSet) -> None:
        """Other images. Predictions are restricted to the classes of a set whose folders are called by classes."""
        name, has_parts = one.data.name, one.layout == "corruptions"
        is_partial = one.layout == "classes" and len(one.classes) < len(self.data.classes)
        among = np.unique(one.classes) if is_partial else None
        judged, used = {}, []
        for part in one.parts:
            treatment = self._treatment() if has_parts else None
            judged[part], features = self._judge(one.data, part, treatment, one.classes, among)
            used.append(features.used)
        outcome.used[name] = joined_used(used)
        first, taken_for = features.classes[0], self.data.classes[one.classes[0]]
        numbering = f", folder {first} taken for class {taken_for}" if one.layout == "numbers" else ""
        outcome.remarks += (
            f"{name}: {len(one.classes):,} of {len(self.data.classes):,} classes, "
            f"predictions out of {'all' if among is None else 'these alone'}{numbering}",
        )
        if has_parts:
            self._add_table(outcome, one.data, judged)
        else:
            outcome.metrics[f"top1, {name}"] = accuracy(judged[WHOLE].correct)

    def _add_table(self, outcome: Outcome, data: BenchData, judged: Mapping[str, Judged]) -> None:
        """ImageNet-C: its mean is that of its fifteen corruptions, without those that it has for validation."""
        cells = {(part.split("/")[0], int(part.split("/")[1])): one for part, one in judged.items()}
        missing = {*product(IMAGENET_C, SEVERITIES)} - cells.keys()
        counted = [one for one in IMAGENET_C if any(corruption == one for corruption, _ in cells)]
        table = judge_table(data.name, f"top1, {data.name}", cells, seed=self.config.seed, counted=counted)
        outcome.metrics |= table.metrics
        outcome.grids += (table.grid,)
        if missing:
            outcome.remarks += (f"{data.name}: {len(missing)} of the 75 parts of ImageNet-C are missing",)
        others = sorted({corruption for corruption, _ in cells} - set(counted))
        if counted and others:
            outcome.remarks += (f"{data.name}: the mean is without {', '.join(others)}",)

    def _treatment(self, **what: Any) -> Treatment:
        return Treatment.before(self.model.encoder.spec.preprocess, **what)

    def _judge(
        self,
        data: BenchData,
        split: str,
        treatment: Treatment | None,
        classes: Classes,
        among: Int64[np.ndarray, " some"] | None = None,
    ) -> tuple[Judged, Features]:
        """Which images are classified rightly; `classes` are the numbers of theirs."""
        features = self.model.features(data, split, treatment=treatment)
        self.seconds += features.seconds
        assert features.labels is not None
        correct = self.classifier.predict(features.vectors, among) == classes[features.labels]
        return Judged(features.images(data.open(split)), correct), features


def _families(cells: Mapping[Cell, Judged]) -> dict[str, list[str]]:
    """The corruptions that were measured, by kind."""
    there = dict.fromkeys(corruption for corruption, _ in cells)
    found = {family: [name for name in there if CORRUPTIONS[name].family == family] for family in get_args(Family)}
    return {family: names for family, names in found.items() if names}


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {
        "corruptions": ["gaussian_noise", "defocus_blur", "brightness", "jpeg_compression"],
        "severities": [3],
        "num_images": 100,
        "logreg": LOGREG_PRESETS["smoke"],
    },
    "short": {"severities": [1, 3, 5], "num_images": 1000, "logreg": LOGREG_PRESETS["short"]},
    "paper": {},
}
TASK = BenchTask(
    "robustness",
    1,
    "accuracy under shift, of frozen embeddings",
    "embedding",
    "labelled",
    RobustnessConfig,
    PRESETS,
    run,
)
