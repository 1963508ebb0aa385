"""ReaL: all the classes that ImageNet's validation images show, as people have labelled them (Beyer et al., 2020)."""

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from mcbeit.errors import DataError
from mcbeit.sources import location

NUM_CLASSES = 1000
LEAST_SHARE = 0.5  # of images that show the class that ImageNet gives them: most do
TIMM = "timm"  # the labels that come with it
FILE = "data/_info/imagenet_real_labels.json"
NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
EXPECTED = "a list with a list of class numbers per validation image, as real.json of the publication"


class RealLabels(NamedTuple):
    """The classes of every validation image, the first first; of some there are none."""

    place: str
    labels: list[list[int]]
    sha256: str

    def check(self, names: Sequence[str], labels: Int64[np.ndarray, " image"], num_classes: int) -> None:
        """Raise DataError unless images, known by their names, and their classes are those of the labels.

        If few show the class that ImageNet gives them, classes are numbered in another order here.
        """
        highest = max((label for labels in self.labels for label in labels), default=0)
        if highest >= num_classes:
            raise DataError(
                f"'{self.place}' names class {highest}, and the images have {num_classes} classes, 0 to "
                f"{num_classes - 1}; ReaL is of all {NUM_CLASSES} of ImageNet"
            )
        shows = self.judge(names, labels)
        if shows.mean() < LEAST_SHARE:
            raise DataError(
                f"'{self.place}' has other classes than the images: of {len(shows)} images only {shows.sum()} show "
                "their own; ReaL numbers classes in the order of their WordNet ids, so folders must be called by these"
            )

    def judge(self, names: Sequence[str], predicted: Int64[np.ndarray, " image"]) -> Bool[np.ndarray, " labelled"]:
        """Whether each image with labels was taken for one of its classes.

        Raises DataError for a strange name, and if no image has labels.
        """
        numbers = [self._number(name) for name in names]
        pairs = zip((self.labels[number] for number in numbers), predicted.tolist(), strict=True)
        found = np.array([guess in labels for labels, guess in pairs if labels], bool)
        if not len(found):
            raise DataError(f"'{self.place}' has labels for none of {len(names)} images; use more of them")
        return found

    def _number(self, name: str) -> int:
        found = NUMBER.search(name)
        if found is None or not 1 <= int(found[1]) <= len(self.labels):
            raise DataError(
                f"'{self.place}' has labels for the validation images ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{len(self.labels):08}, and '{name}' is none of them"
            )
        return int(found[1]) - 1


def read_real_labels(place: str) -> RealLabels:
    """Read a JSON file, or `timm`, whose package holds them. Raises DataError if it is another file."""
    try:
        data = (files("timm") / FILE).read_bytes() if place == TIMM else location.read_bytes(place)
    except OSError as error:
        raise DataError(
            f"the labels '{place}' cannot be read: {error.strerror or error}; expected {EXPECTED}"
        ) from error
    try:
        labels = json.loads(data)
    except ValueError as error:
        raise DataError(f"'{place}' is no JSON file; expected {EXPECTED}") from error
    if not isinstance(labels, list):
        raise DataError(f"'{place}' is no list but {type(labels).__name__}; expected {EXPECTED}")
    if wrong := [one for one in labels if not _are_numbers(one)]:
        raise DataError(f"'{place}' lists {wrong[0]!r:.60}; expected {EXPECTED}")
    return RealLabels(place, labels, hashlib.sha256(data).hexdigest())


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) and one >= 0 for one in value)
