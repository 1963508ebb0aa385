"""Images whose objects are marked: COCO, and any set in its format.

splits = open_coco_splits("coco")    # annotations/instances_train2017.json, train2017/, ... val2017.json, val2017/
marks = splits.train.annotations(0)  # labels and outlines of the objects of an image
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mcbeit.detection.coco_file import CocoFile, read_coco
from mcbeit.errors import DataError
from mcbeit.sources import location
from mcbeit.sources.files import FileSource, open_named


class Marks(NamedTuple):
    """What is marked in an image: for each object its class and its outline."""

    height: int  # of the image, pixels
    width: int
    labels: Int64[np.ndarray, " object"]  # from 0, places in the source's `classes`
    segmentations: list[Any]  # polygons or run-length codes, for `rle.decode`


class CocoSource(FileSource):
    """The images of an annotation file, in the order of their ids, and the objects in them.

    Crowds, which stand for many objects, are no objects here.
    """

    def __init__(self, root: str, file: CocoFile, chosen: Int64[np.ndarray, " image"]) -> None:
        super().__init__(root, [file.names[i] for i in chosen], classes=file.classes)
        self.file, self._chosen = file, chosen
        self.image_ids, self.category_ids = file.image_ids[chosen], file.category_ids
        if file.num_shapeless:
            self.notes.append(f"'{file.path}': left out as they have no usable outline: {file.num_shapeless} objects")
        if left := len(file.names) - len(chosen):
            self.notes.append(f"'{file.path}': left out as they show no object: {left} of {len(file.names)} images")

    @property
    def num_objects(self) -> int:
        """In all images together."""
        return int(self.file.num_objects[self._chosen].sum())

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, as its annotations state them."""
        height, width = self.file.sizes[self._chosen[index]]
        return int(height), int(width)

    def annotations(self, index: int) -> Marks:
        """What is marked in an image."""
        place = int(self._chosen[index])
        objects = slice(int(self.file.starts[place]), int(self.file.starts[place + 1]))
        outlines = [self.file.segmentations[int(number)] for number in self.file.outlines[objects]]
        return Marks(*self.size_of(index), self.file.labels[objects], outlines)

    def annotation(self, index: int) -> bytes:
        """What is marked in an image, as text."""
        marks = self.annotations(index)
        return json.dumps([marks.height, marks.width, marks.labels.tolist(), marks.segmentations]).encode()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "CocoSource":
        """Some of the images, in the order given; itself if those are all."""
        if list(indices) == list(range(len(self))):
            return self
        return CocoSource(self.root, self.file, self._chosen[np.asarray(indices, np.int64)])

    def summary(self) -> dict[str, Any]:
        """By the names of the images and the content of the annotation file."""
        names = super().summary()["names_sha256"]
        return {"images": len(self), "names_sha256": hashlib.sha256((names + self.file.sha256).encode()).hexdigest()}


class CocoSplits(NamedTuple):
    """Images to train on and to test on, of the same categories."""

    train: CocoSource
    val: CocoSource
    layout: str


class Layout(NamedTuple):
    """Where the annotations and the images of both splits lie in a folder."""

    train: tuple[str, str]
    val: tuple[str, str]

    @property
    def places(self) -> list[str]:
        """All of them."""
        return [*self.train, *self.val]

    @property
    def expected(self) -> str:
        """In words."""
        return f"{self.train[0]} with {self.train[1]}/, {self.val[0]} with {self.val[1]}/"


LAYOUTS = {
    "coco2017": Layout(
        ("annotations/instances_train2017.json", "train2017"), ("annotations/instances_val2017.json", "val2017")
    ),
    "coco": Layout(("annotations/instances_train.json", "train"), ("annotations/instances_val.json", "val")),
    "roboflow": Layout(("train/_annotations.coco.json", "train"), ("valid/_annotations.coco.json", "valid")),
}


def open_coco(annotations: str, images: str, *, only_with_objects: bool = False) -> CocoSource:
    """The images of one annotation file, which lie below the folder `images`.

    `only_with_objects` leaves out images without any, from which detectors are not trained. Raises DataError if the
    annotations cannot be used, if images are missing, or if none is left.
    """
    annotations, images = (location.expand(place)[0] for place in (annotations, images))
    if not location.exists(annotations):
        raise DataError(f"there are no annotations '{annotations}' (looked from {Path.cwd()})")
    if not location.is_folder(images):
        raise DataError(f"there is no folder of images '{images}', which '{annotations}' is about")
    file = read_coco(annotations)
    chosen = np.flatnonzero(file.num_objects > 0) if only_with_objects else np.arange(len(file.names))
    if not len(chosen):
        shapeless = f", as {file.num_shapeless} have no outline" * bool(file.num_shapeless)
        raise DataError(f"no image of '{annotations}' has an object to train on{shapeless}")
    open_named(images, file.names, where=annotations)  # raises if any is missing
    return CocoSource(images, file, chosen)


def open_coco_splits(root: str | Path) -> CocoSplits:
    """Open a folder, or the URL of one, laid out as COCO 2017 or as one of LAYOUTS.

    Raises DataError, with what was expected and what was found, if files are missing or do not match, or if the splits
    have other categories.
    """
    folder = location.expand(str(root))[0]
    if not location.is_folder(folder):
        what = "is a file: name the folder that holds it" if location.exists(folder) else "is not there"
        raise DataError(f"'{folder}' {what}")
    found = {name: [_exists(folder, place) for place in layout.places] for name, layout in LAYOUTS.items()}
    for name, there in found.items():
        if all(there):
            return _open_layout(folder, name)
    incomplete = []
    for name, there in found.items():
        if there[0] or there[2]:
            missing = [place for place, is_there in zip(LAYOUTS[name].places, there, strict=True) if not is_there]
            incomplete.append(f"'{folder}' is laid out as {name}, but lacks {', '.join(missing)}")
    if incomplete:
        raise DataError("; or ".join(incomplete))
    expected = "; ".join(f"{name}: {layout.expected}" for name, layout in LAYOUTS.items())
    raise DataError(
        f"'{folder}' holds no annotated images to train and to test on: {location.describe(folder)}; expected one of: "
        f"{expected}"
    )


def check_same_classes(train: CocoSource, val: CocoSource) -> None:
    """Raises DataError unless both sources have the same categories under the same ids."""
    first, second = (dict(zip(s.category_ids.tolist(), s.classes, strict=True)) for s in (train, val))
    if first == second:
        return
    differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    told = [f"{key} is {first.get(key)!r} and {second.get(key)!r}" for key in differing[:4]]
    raise DataError(
        f"the categories of '{train.file.path}' ({len(first)}) and '{val.file.path}' ({len(second)}) are not the same: "
        f"{'; '.join(told)}{f' and {len(differing) - 4} more' if len(differing) > 4 else ''}"
    )


def _open_layout(folder: str, name: str) -> CocoSplits:
    """The smaller split first: its errors come sooner."""
    val, train = (
        open_coco(*(location.join(folder, place) for place in places), only_with_objects=is_train)
        for places, is_train in ((LAYOUTS[name].val, False), (LAYOUTS[name].train, True))
    )
    check_same_classes(train, val)
    return CocoSplits(train, val, name)


def _exists(folder: str, place: str) -> bool:
    there = location.join(folder, place)
    return location.exists(there) if place.endswith(".json") else location.is_folder(there)
