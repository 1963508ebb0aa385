"""Annotation files in COCO's format, read into few arrays.

The objects of COCO 2017 are 450 MB of text, as Python lists several GB. Here each is packed the moment that it has been
parsed, and what is kept of all of them takes about 300 MB, which loader processes share.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mcbeit.errors import DataError
from mcbeit.sources import location

LISTS = ("images", "annotations", "categories")
NO_OUTLINE, NOTHING = -1, -2  # a segmentation that is of no use, and none at all
MIN_NUMBERS = 6  # of a polygon: three points


class Outlines:
    """Segmentations of many objects: polygons in one array, run-length codes as they are."""

    def __init__(self) -> None:
        self._points, self._ends, self._polygons = array("d"), array("q", [0]), array("q", [0])
        self._codes: dict[int, dict[str, Any]] = {}

    def add(self, segmentation: Any) -> int:
        """Keep one; returns its number, or NO_OUTLINE if it has neither a code nor a polygon of three points."""
        number = len(self._polygons) - 1
        if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
            self._codes[number] = {key: segmentation[key] for key in ("size", "counts")}
        else:
            polygons = list(_polygons(segmentation))
            if not polygons:
                return NO_OUTLINE
            for polygon in polygons:
                self._points += polygon
                self._ends.append(len(self._points))
        self._polygons.append(len(self._ends) - 1)
        return number

    def __getitem__(self, number: int) -> Any:
        """A list of polygons x, y, x, y, ... in pixels, or a run-length code."""
        if number in self._codes:
            return self._codes[number]
        ends = self._ends[self._polygons[number] : self._polygons[number + 1] + 1]
        return [self._points[start:end].tolist() for start, end in pairwise(ends)]


class Annotation(NamedTuple):
    """One object of a file, with the number of its outline."""

    id: Any
    image_id: Any
    category_id: Any
    is_crowd: bool
    outline: int


@dataclass(frozen=True)
class CocoFile:
    """What an annotation file says. Images are in the order of their ids, categories too; objects by image."""

    path: str
    sha256: str
    names: list[str]  # of the image files
    image_ids: Int64[np.ndarray, " image"]
    sizes: Int64[np.ndarray, "image 2"]  # height and width in pixels
    classes: list[str]
    category_ids: Int64[np.ndarray, " class"]
    starts: Int64[np.ndarray, " image_and_end"]  # of the objects of an image
    labels: Int64[np.ndarray, " object"]  # places in `classes`
    outlines: Int64[np.ndarray, " object"]
    segmentations: Outlines
    num_crowds: int  # that stand for many objects; they are no objects here, but count in COCO's scores
    num_shapeless: int  # objects without a usable segmentation, which are left out
    num_bare: int  # annotations, of crowds too, without any segmentation: with them masks cannot be scored

    @property
    def num_objects(self) -> Int64[np.ndarray, " image"]:
        """Of each image."""
        return np.diff(self.starts)


def read_coco(path: str) -> CocoFile:
    """Read and check an annotation file. Raises DataError that names everything that is wrong with it."""
    try:
        data = location.read_bytes(path)
    except OSError as error:
        raise DataError(f"the annotations '{path}' cannot be read: {error.strerror or error}") from error
    sha256, text = hashlib.sha256(data).hexdigest(), data.decode("utf-8-sig", errors="replace")
    del data  # half a GB
    outlines = Outlines()
    content = _parse(text, path, outlines)
    complaints = list(_complaints(content))
    if complaints:
        raise DataError(f"'{path}' is no annotation file in COCO's format: {'; '.join(complaints)}")
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    things: list[Annotation] = content["annotations"]
    objects = [thing for thing in things if not thing.is_crowd and thing.outline >= 0]
    image_ids, category_ids = _ids(images), _ids(categories)
    of_image = np.searchsorted(image_ids, np.array([thing.image_id for thing in objects], np.int64))
    order = np.argsort(of_image, kind="stable")
    num_crowds = sum(thing.is_crowd for thing in things)
    return CocoFile(
        path=path,
        sha256=sha256,
        names=[image["file_name"] for image in images],
        image_ids=image_ids,
        sizes=np.array([[image["height"], image["width"]] for image in images], np.int64),
        classes=[category["name"] for category in categories],
        category_ids=category_ids,
        starts=np.searchsorted(of_image[order], np.arange(len(images) + 1)),
        labels=np.searchsorted(category_ids, np.array([thing.category_id for thing in objects], np.int64))[order],
        outlines=np.array([thing.outline for thing in objects], np.int64)[order],
        segmentations=outlines,
        num_crowds=num_crowds,
        num_shapeless=len(things) - num_crowds - len(objects),
        num_bare=sum(thing.outline == NOTHING for thing in things),
    )


def _parse(text: str, path: str, outlines: Outlines) -> dict[str, list[Any]]:
    def pack(found: dict[str, Any]) -> Any:
        if "image_id" not in found:
            return found
        is_crowd, segmentation = bool(found.get("iscrowd")), found.get("segmentation")
        outline = NOTHING if not segmentation else NO_OUTLINE if is_crowd else outlines.add(segmentation)
        return Annotation(found.get("id"), found.get("image_id"), found.get("category_id"), is_crowd, outline)

    try:
        content = json.loads(text, object_hook=pack)
    except ValueError as error:
        raise DataError(f"the annotations '{path}' are no JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in LISTS):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"'{path}' is no annotation file in COCO's format: it needs the lists {', '.join(LISTS)}, "
                        f"found {found or 'nothing'}")  # fmt: skip
    return {key: content[key] for key in LISTS}


def _complaints(content: dict[str, list[Any]]) -> Iterator[str]:
    """What is wrong with the lists of a file."""
    images, things, categories = (content[key] for key in LISTS)
    bad_images = [image for image in images if not _is_image(image)]
    yield from _named(bad_images, "image", "without id, file_name, height or width")
    bad_things = [thing for thing in things if not (isinstance(thing, Annotation) and _is_id(thing.id))]
    yield from _named(bad_things, "annotation", "without id or image_id")
    bad_categories = [category for category in categories if not _is_category(category)]
    yield from _named(bad_categories, "category", "without id or name")
    if bad_images or bad_things or bad_categories:
        return
    if not images or not categories:
        yield f"it has {len(images)} images and {len(categories)} categories"
    known = {"images": {image["id"] for image in images}, "categories": {entry["id"] for entry in categories}}
    for kind, ids in (("images", [image["id"] for image in images]), ("annotations", [thing.id for thing in things]),
                      ("categories", [entry["id"] for entry in categories])):  # fmt: skip
        if twice := [value for value, times in Counter(ids).items() if times > 1]:
            yield f"{len(twice)} ids of {kind} occur more than once, such as {twice[0]}"
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if lost := [thing for thing in things if getattr(thing, key) not in known[kind]]:
            yield f"{len(lost)} annotations are of unknown {kind}, such as {lost[0].id} of {getattr(lost[0], key)!r}"


def _named(entries: Sequence[Any], kind: str, what: str) -> Iterator[str]:
    if entries:
        first = json.dumps(entries[0]._asdict() if isinstance(entries[0], Annotation) else entries[0], default=str)
        yield f"{len(entries)} of its {kind} entries {what}, such as {first:.120}"


def _is_image(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return False
    return _is_id(entry.get("id")) and all(_is_id(entry.get(key)) and entry[key] > 0 for key in ("height", "width"))


def _is_category(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_id(entry.get("id")) and isinstance(entry.get("name"), str)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _polygons(segmentation: Any) -> Iterator["array[float]"]:
    """Those of the parts of a list that are polygons."""
    for part in segmentation if isinstance(segmentation, list) else []:
        if isinstance(part, list) and len(part) >= MIN_NUMBERS and len(part) % 2 == 0:
            with suppress(TypeError):  # what is no number
                yield array("d", part)


def _ids(entries: Iterable[dict[str, Any]]) -> Int64[np.ndarray, " entry"]:
    return np.array([entry["id"] for entry in entries], np.int64)
