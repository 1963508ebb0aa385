"""Which images a measurement was made on, so that another one can be known to be of the same."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from mcbeit.config import Config
from mcbeit.embeddings import Embeddings
from mcbeit.errors import ImageError
from mcbeit.sources import ImageSource

NUM_HASHED = 256  # images whose content is hashed: all would take as long as to embed them
MAX_LISTED = 20  # unreadable images that are named


class Manifest(Config):
    """The images of a split as they are before any is decoded."""

    num_images: int = Field(ge=0)
    num_lost: int = Field(ge=0)  # images of damaged shards, which are in no other number
    num_classes: int = Field(ge=0)  # that occur; 0 without labels
    names_sha256: str
    labels_sha256: str | None  # of label maps and other annotations: of those of `num_hashed` images
    content_sha256: str  # of the bytes of `num_hashed` images, evenly spread
    num_hashed: int = Field(ge=0)


@runtime_checkable
class Annotated(Protocol):
    """A source that knows more of its images than a class."""

    def annotation(self, index: int) -> bytes:
        """What is known of an image, as it is stored. Raises OSError if it cannot be read."""
        ...


class Used(Config):
    """The images of a split that a measurement could use."""

    num_used: int = Field(ge=0)
    num_unreadable: int = Field(ge=0)
    unreadable: tuple[str, ...] = ()  # the names of the first of them

    @classmethod
    def in_training(cls, count: int, num_unreadable: int) -> "Used":
        """Of `count` images that a run drew from, of which it could not read some."""
        return cls(num_used=count - num_unreadable, num_unreadable=num_unreadable)


def make_manifest(source: ImageSource) -> Manifest:
    """Look at a source: its names and labels, and the content of some images."""
    labels = source.labels
    hashed = np.unique(np.linspace(0, len(source) - 1, num=min(NUM_HASHED, len(source))).round().astype(int)).tolist()
    num_classes = 0 if labels is None else len(np.unique(labels))
    labels_sha256 = None if labels is None else hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()
    if isinstance(source, Annotated):
        num_classes, labels_sha256 = len(source.classes), _hash_all(source.annotation, hashed)
    return Manifest(
        num_images=len(source),
        num_lost=sum(damage.num_lost for damage in source.damaged),
        num_classes=num_classes,
        names_sha256=source.summary()["names_sha256"],
        labels_sha256=labels_sha256,
        content_sha256=_hash_all(source.read, hashed),
        num_hashed=len(hashed),
    )


def joined_manifest(parts: Sequence[Manifest]) -> Manifest:
    """That of a set of several parts."""
    if len(parts) == 1:
        return parts[0]
    hashes = {
        name: hashlib.sha256(" ".join(str(getattr(part, name)) for part in parts).encode()).hexdigest()
        for name in ("names_sha256", "labels_sha256", "content_sha256")
    }
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("num_images", "num_lost", "num_hashed")}
    return Manifest(**counts, **hashes, num_classes=max(part.num_classes for part in parts))


def joined_used(parts: Sequence[Used]) -> Used:
    """That of a set of several parts."""
    return Used(
        num_used=sum(part.num_used for part in parts),
        num_unreadable=sum(part.num_unreadable for part in parts),
        unreadable=tuple(name for part in parts for name in part.unreadable)[:MAX_LISTED],
    )


def used_images(source: ImageSource, found: Embeddings) -> Used:
    """How many images have vectors, and which have none."""
    missing = len(source) - len(found.paths)
    names: Sequence[str] = ()
    if missing:
        there = set(found.paths)
        names = [name for name in map(source.name, range(len(source))) if name not in there]
    return Used(num_used=len(found.paths), num_unreadable=missing, unreadable=tuple(names[:MAX_LISTED]))


def _hash_all(read: Callable[[int], bytes], indices: Sequence[int]) -> str:
    whole = hashlib.sha256()
    for index in indices:
        try:
            content = read(index)
        except (OSError, ImageError) as error:
            content = type(error).__name__.encode()
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()
