"""Other images of known classes: ImageNet-A, -R, -V2, ImageNet-C as it is distributed, and what is laid out alike."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import ImageSource, location
from mcbeit.sources.files import open_imagefolder

ShiftedLayout = Literal["classes", "numbers", "corruptions"]
WHOLE = "images"  # the one part of a set without corruptions
SEVERITIES = {"1", "2", "3", "4", "5"}
IMAGENET_C = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
EXPECTED = (
    "CLASS/IMAGE, of classes of the training images (ImageNet-A, -R); NUMBER/IMAGE, the numbers of classes from 0 on "
    "(ImageNet-V2); or CORRUPTION/SEVERITY/CLASS/IMAGE, severities 1 to 5 (ImageNet-C)"
)


class ShiftedSet(NamedTuple):
    """What a folder holds: one labelled source, or one per corruption and severity, as `fog/3`, of the same images."""

    parts: tuple[str, ...]
    layout: ShiftedLayout
    classes: tuple[str, ...]  # the names of the folders of images, by number


def open_shifted(path: str, *, channels: int = COLOURS) -> ShiftedSet:
    """Open a folder. Raises DataError, with what was expected and found, if it is laid out otherwise or incomplete."""
    if not location.is_folder(path):
        what = "is a file" if location.exists(path) else "is not there"
        raise DataError(f"'{path}' {what}; expected a folder with {EXPECTED}")
    folders = _folders(path)
    inner = _folders(location.join(path, folders[0])) if folders else []
    if inner and set(inner) <= SEVERITIES:
        parts = tuple(part for name in folders for part in _severities(path, name))
        return ShiftedSet(parts, "corruptions", _classes(path, parts, channels))
    if inner or not folders:
        seen = f"; in '{folders[0]}' {location.describe(location.join(path, folders[0]))}" if folders else ""
        raise DataError(f"'{path}' is not laid out as {EXPECTED}: {location.describe(path)}{seen}")
    is_numbered = all(name.isascii() and name.isdigit() for name in folders)
    return ShiftedSet((WHOLE,), "numbers" if is_numbered else "classes", _classes(path, (WHOLE,), channels))


def open_part(path: str, part: str, *, channels: int = COLOURS) -> ImageSource:
    """The images of a part; the others, of which ImageNet-C has millions, are not looked at."""
    return open_imagefolder(path if part == WHOLE else location.join(path, part), channels=channels)


def class_numbers(path: str, found: ShiftedSet, classes: Sequence[str]) -> Int64[np.ndarray, " class"]:
    """The numbers that the classes of a set have among those of the training images.

    Raises DataError if it has a class that they do not have.
    """
    number = {name: i for i, name in enumerate(classes)}
    own = found.classes
    if found.layout == "numbers" and not set(own) <= number.keys():
        number = {str(i): i for i in range(len(classes))}
    if strange := [name for name in own if name not in number]:
        raise DataError(
            f"{len(strange)} of {len(own)} folders of '{path}' are no classes of the training images, such as "
            f"'{strange[0]}'; expected '{classes[0]}' and the like, or numbers from 0 to {len(classes) - 1}"
        )
    return np.array([number[name] for name in own], np.int64)


def _folders(path: str) -> list[str]:
    return [name for name in location.names(path) if location.is_folder(location.join(path, name))]


def _severities(path: str, name: str) -> list[str]:
    """The parts of a corruption. Raises DataError if its folder holds others."""
    found = _folders(location.join(path, name))
    if not found or not set(found) <= SEVERITIES:
        there = location.describe(location.join(path, name))
        raise DataError(f"'{path}' has corruptions, but '{name}' has no folders 1 to 5 of severities: {there}")
    return [f"{name}/{severity}" for severity in found]


def _classes(path: str, parts: Sequence[str], channels: int) -> tuple[str, ...]:
    """The classes that all parts have. Raises DataError unless all have the same images."""
    first = open_part(path, parts[0], channels=channels)
    for part in parts[1:]:
        other = open_part(path, part, channels=channels)
        if other.summary() != first.summary():
            raise DataError(
                f"'{path}' has other images in '{part}' ({len(other)}) than in '{parts[0]}' "
                f"({len(first)}); are all corruptions complete?"
            )
    return tuple(first.classes)
