"""What a source of images is: encoded images in a fixed order, read by number."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mcbeit.image_files import COLOURS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MANY_CHANNEL_SUFFIXES = SUFFIXES | {".npy"}  # where images have another number of channels
Labels = Int[np.ndarray, " image"]


class Damage(NamedTuple):
    """A shard or file of many images that cannot be read to its end."""

    name: str
    reason: str
    num_lost: int  # images that are missing for it: known, or estimated


@runtime_checkable
class ImageSource(Protocol):
    """An ordered collection of encoded images, with labels if it knows them."""

    labels: Labels | None
    classes: list[str]
    passed_over: Counter[str]  # files that no image can be in, by suffix
    channels: int  # of its images; 3 are colours
    damaged: list[Damage]
    notes: list[str]  # what else a person should know

    def __len__(self) -> int:
        """The number of images, readable or not."""

    def name(self, index: int) -> str:
        """What a person calls the image: its path."""

    def read(self, index: int) -> bytes:
        """The encoded image; raises OSError if it cannot be read. May be called from many threads."""

    def summary(self) -> dict[str, Any]:
        """The number of images, and a hash that is another one if they are, or are called, otherwise; for JSON."""


class Described:
    """The attributes that every source has, with what most of them have."""

    def __init__(
        self,
        *,
        labels: Labels | None = None,
        classes: Sequence[str] = (),
        passed_over: Counter[str] | None = None,
        channels: int = COLOURS,
        damaged: Sequence[Damage] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.labels = labels
        self.classes = list(classes)
        self.passed_over = passed_over or Counter()
        self.channels = channels
        self.damaged = list(damaged)
        self.notes = list(notes)


class PackedNames:
    """Many names in one buffer: a million paths take about 50 MB instead of 120, and one object."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self.text = b"".join(encoded)
        self.ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.text[start : int(self.ends[index])])

    def hashed(self) -> bytes:
        """What to hash: other names, or the same ones cut otherwise, are other bytes."""
        return self.ends.tobytes() + self.text


def suffixes(channels: int) -> frozenset[str]:
    """How files of images with so many channels end; `.npy` counts only where images are no ordinary ones."""
    return SUFFIXES if channels == COLOURS else MANY_CHANNEL_SUFFIXES


def source_notes(source: ImageSource) -> list[str]:
    """What a person should know of a source before it is used."""
    notes = list(source.notes)
    if source.passed_over:
        found = ", ".join(f"{count} x {suffix}" for suffix, count in source.passed_over.most_common(4))
        notes.append(f"{source.passed_over.total()} files of other kinds are passed over: {found}")
    if source.damaged:
        first, lost = source.damaged[0], sum(damage.num_lost for damage in source.damaged)
        notes.append(
            f"{len(source.damaged)} files cannot be read to their end, which loses about {lost} images; the first is "
            f"'{first.name}': {first.reason}"
        )
    return notes


def class_order(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, before words."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name
