"""The labelled images of a finetuning run: those it learns from, those it is tested on, those it may be chosen by."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from pydantic import Field

from mcbeit.atomic import write_json
from mcbeit.data import DataConfig
from mcbeit.errors import ConfigError, DataError, RunError
from mcbeit.runfolder import writing
from mcbeit.sources import ImageSource, Labels, SourceKind, SubsetSource
from mcbeit.sources.imagenet import open_splits
from mcbeit.supervised import EvalConfig

CLASSES = "classes.json"  # in the run folder: what the outputs of the head mean


class JudgeConfig(EvalConfig):
    """On which images a run is judged, and when."""

    source: str | list[str] | None = None  # test images; None: data.source holds both, as ImageNet does
    kind: SourceKind = "auto"
    # share of each class of the training images that is left out, to choose the best epoch by; None: the test images
    held_out: float | None = Field(None, gt=0, lt=1)


class Judged(NamedTuple):
    """Images that a model is asked about, their labels numbered as those that it learns from."""

    source: ImageSource
    labels: Labels


class FinetuneImages(NamedTuple):
    """What a run learns from and what it is judged on."""

    train: ImageSource
    test: Judged
    held_out: Judged | None

    @property
    def labels(self) -> Labels:
        """The classes of the training images."""
        assert self.train.labels is not None
        return self.train.labels

    @property
    def num_classes(self) -> int:
        """Outputs of the head."""
        return len(self.train.classes)


def open_both(data: DataConfig, test: JudgeConfig) -> tuple[ImageSource, ImageSource]:
    """The labelled images of a config, to learn from and to test on. Raises DataError if there are none."""
    place = data.required_source()
    if test.source is not None:
        tested = data.model_copy(update={"source": test.source, "kind": test.kind})
        return data.open(folders="imagefolder"), tested.open(folders="imagefolder")
    if not isinstance(place, str) or data.kind != "auto":
        raise DataError("eval.source is not set; name the test images, as eval.source=~/photos/val")
    try:
        splits = open_splits(place, channels=data.channels)
    except DataError as error:
        raise DataError(
            f"{error}; if data.source is training images alone, name the test images: eval.source"
        ) from None
    return splits.train, splits.val


def divide(
    train: ImageSource, test: ImageSource, *, label_fraction: float = 1.0, held_out: float | None = None, seed: int = 0
) -> FinetuneImages:
    """Draw the share of the labels that is used, and the images that are held out, by class and by seed.

    Raises DataError if labels are missing or do not fit together, ConfigError if nothing is left.
    """
    labels = _require_labels(train, "data.source")
    if len(train.classes) < 2:
        raise DataError(f"finetuning needs at least 2 classes, but data.source has only '{train.classes[0]}'")
    judged = Judged(test, _renumbered(test, train.classes))
    if label_fraction < 1:
        counts = np.bincount(labels)
        train = SubsetSource(train, draw(labels, np.maximum(1, np.rint(label_fraction * counts)), seed))
    if held_out is None:
        return FinetuneImages(train, judged, None)
    labels = _require_labels(train, "data.source")
    counts = np.bincount(labels)
    chosen = draw(labels, np.minimum(np.rint(held_out * counts), counts - 1), seed)
    if not len(chosen):
        raise ConfigError(
            f"eval.held_out={held_out:g} leaves out none of the {len(train)} training images, as each class has at "
            f"most {counts.max()}; choose a larger share"
        )
    kept = np.setdiff1d(np.arange(len(train)), chosen)
    return FinetuneImages(SubsetSource(train, kept), judged, Judged(SubsetSource(train, chosen), labels[chosen]))


def draw(labels: Labels, quotas: np.ndarray, seed: int) -> Int64[np.ndarray, " chosen"]:
    """So many images of each class, ascending; a smaller quota draws a part of what a larger one does."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # of an image in its class
    return np.sort(by_class[rank < quotas[labels[by_class]]])


def check_classes(run: Path, images: FinetuneImages, *, goes_on: bool) -> None:
    """Keep what the classes are in the run folder, or, of a run that goes on, raise RunError if they have changed."""
    told = {
        "classes": list(images.train.classes),
        "labels_sha256": hashlib.sha256(images.labels.astype(np.int64).tobytes()).hexdigest(),
    }
    if not goes_on:
        with writing("the list of classes", run):
            write_json(run / CLASSES, told)
        return
    before = json.loads((run / CLASSES).read_text(encoding="utf-8"))
    if before != told:
        raise RunError(
            f"the labels of the run '{run}' have changed: its head is for the {len(before['classes'])} classes of "
            f"{run / CLASSES}. Bring the old labels back, or start another run with run=FOLDER"
        )


def _require_labels(source: ImageSource, key: str) -> Labels:
    if source.labels is None:
        raise DataError(
            f"finetuning needs labels, but images such as '{source.name(0)}' have none; name an ImageFolder, a list "
            f"file with labels or labelled shards as {key}"
        )
    return source.labels


def _renumbered(test: ImageSource, classes: Sequence[str]) -> Labels:
    """The labels of test images as numbers of the training's classes."""
    labels = _require_labels(test, "eval.source")
    number = {name: i for i, name in enumerate(classes)}
    if unknown := sorted({test.classes[label] for label in np.unique(labels)} - number.keys()):
        raise DataError(
            f"{len(unknown)} classes of the test images have no training image, such as '{unknown[0]}'; those of the "
            f"training images are called '{classes[0]}' and so on"
        )
    return np.array([number.get(name, -1) for name in test.classes], dtype=np.int64)[labels]
