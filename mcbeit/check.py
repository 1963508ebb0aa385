"""What is in a source, and what is wrong with it: every image is read and decoded once.

Of each image a few numbers are kept, 33 bytes, or 49 with the hash of its pixels; names only of what is told.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from mcbeit.data import DataConfig
from mcbeit.errors import ImageError
from mcbeit.image_files import format_of
from mcbeit.multichannel import decode_image
from mcbeit.scan import scan
from mcbeit.sources import ImageSource

SHOWN = 20  # of each list that a person is shown
DIGEST = 16  # bytes of a sha256 that are kept: among a billion images, chance makes no two of them alike

Hashes = UInt64[np.ndarray, "image 2"]


class Seen(NamedTuple):
    """What one image is; without `reason` it can be decoded."""

    num_bytes: int
    width: int
    height: int
    format: str
    content: bytes  # hash of the file
    pixels: bytes  # hash of the decoded pixels, or empty
    reason: str | None


@dataclass(frozen=True)
class Check:
    """The whole answer."""

    num_images: int
    num_readable: int
    num_lost: int  # images that damaged shards would have had, estimated
    num_bytes: int
    channels: int
    formats: dict[str, int]
    sizes: dict[str, list[int]]  # of the readable image with the fewest, median and most pixels: width, height
    corrupt: list[dict[str, str]]
    damaged: list[dict[str, Any]]
    same_bytes: list[list[str]]  # groups of images, by name
    same_pixels: list[list[str]] | None  # groups of which not all are the same bytes; None if not asked for
    num_conflicting: int  # groups, by either, that are labelled in several ways
    classes: dict[str, int]
    passed_over: dict[str, int]
    notes: list[str]
    max_corrupt_fraction: float

    @property
    def corrupt_fraction(self) -> float:
        """The share of images that cannot be used."""
        return (len(self.corrupt) + self.num_lost) / (self.num_images + self.num_lost)

    @property
    def is_usable(self) -> bool:
        """Whether a run would not stop for its unreadable images."""
        return self.corrupt_fraction <= self.max_corrupt_fraction

    def as_json(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return {"usable": self.is_usable, "corrupt_fraction": self.corrupt_fraction, **asdict(self)}


def check_source(config: DataConfig, *, pixels: bool = False) -> Check:
    """Read every image of a source. `pixels` also finds images that are the same in other files or formats."""
    source = config.open()
    num_images = len(source)
    sizes = np.zeros((num_images, 3), dtype=np.int64)  # bytes, width, height
    content, decoded = _hashes(num_images), _hashes(num_images if pixels else 0)
    readable = np.zeros(num_images, dtype=bool)
    formats: Counter[str] = Counter()
    corrupt: list[dict[str, str]] = []
    look = look_at_pixels if pixels else look_at
    for index, seen in enumerate(scan(source, np.arange(num_images), look, config, title="check")):
        sizes[index] = seen[:3]
        if seen.reason is not None:
            corrupt.append({"name": source.name(index), "reason": seen.reason})
            continue
        formats[seen.format] += 1
        readable[index] = True
        content[index] = np.frombuffer(seen.content, dtype=np.uint64)
        if pixels:
            decoded[index] = np.frombuffer(seen.pixels, dtype=np.uint64)
    same_bytes = list(_groups(content, readable))
    same_pixels = [group for group in _groups(decoded, readable) if _differ(content, group)] if pixels else []
    return Check(
        num_images=num_images,
        num_readable=int(readable.sum()),
        num_lost=sum(damage.num_lost for damage in source.damaged),
        num_bytes=int(sizes[:, 0].sum()),
        channels=source.channels,
        formats=dict(formats.most_common()),
        sizes=_sizes(sizes[readable, 1:]),
        corrupt=corrupt,
        damaged=[damage._asdict() for damage in source.damaged],
        same_bytes=[_names(source, group) for group in same_bytes],
        same_pixels=[_names(source, group) for group in same_pixels] if pixels else None,
        num_conflicting=sum(_is_conflicting(source, group) for group in (*same_bytes, *same_pixels)),
        classes=_classes(source),
        passed_over=dict(source.passed_over.most_common()),
        notes=source.notes,
        max_corrupt_fraction=config.max_corrupt_fraction,
    )


def look_at(source: ImageSource, index: int, *, pixels: bool = False) -> Seen:
    """Read and decode one image."""
    num_bytes = 0
    try:
        data = source.read(index)
        num_bytes = len(data)
        image = decode_image(data, source.channels)
    except (ImageError, OSError) as error:
        return Seen(num_bytes, 0, 0, "", b"", b"", " ".join(str(error).split()))
    values = np.asarray(image)
    height, width = values.shape[:2]
    hashed = _digest(np.array(values.shape).tobytes() + values.tobytes()) if pixels else b""
    return Seen(num_bytes, width, height, format_of(data), _digest(data), hashed, None)


def look_at_pixels(source: ImageSource, index: int) -> Seen:
    """The same, with the hash of the pixels."""
    return look_at(source, index, pixels=True)


def describe(check: Check) -> Iterator[str]:
    """The answer in lines for a person."""
    yield f"{check.num_images} images, {check.num_readable} of them readable, {check.num_bytes / 1e6:,.1f} MB"
    if check.formats:
        yield "formats: " + ", ".join(f"{count} x {name}" for name, count in check.formats.items())
        yield "sizes: " + ", ".join(f"{name} {width} x {height}" for name, (width, height) in check.sizes.items())
    yield f"labels: {_class_line(check.classes)}" if check.classes else "labels: none"
    if check.passed_over:
        yield "passed over: " + ", ".join(f"{count} x {name}" for name, count in check.passed_over.items())
    yield from (f"note: {note}" for note in check.notes)
    yield from _listed("damaged", [f"{d['name']}: {d['reason']} (about {d['num_lost']})" for d in check.damaged])
    yield from _listed("corrupt", [f"{bad['name']}: {bad['reason']}" for bad in check.corrupt])
    yield from _listed("same bytes", [" = ".join(group) for group in check.same_bytes])
    if check.same_pixels is not None:
        yield from _listed("same pixels", [" = ".join(group) for group in check.same_pixels])
    if check.num_conflicting:
        yield f"duplicates with several labels: {check.num_conflicting}"
    verdict = "usable" if check.is_usable else "not usable"
    yield (
        f"{verdict}: {check.corrupt_fraction:.2%} cannot be read, data.max_corrupt_fraction allows "
        f"{check.max_corrupt_fraction:.2%}"
    )


def _listed(title: str, rows: list[str]) -> Iterator[str]:
    yield f"{title}: {len(rows) or 'none'}"
    yield from (f"  {row}" for row in rows[:SHOWN])
    if len(rows) > SHOWN:
        yield f"  ... and {len(rows) - SHOWN} more; --json lists all"


def _class_line(classes: dict[str, int]) -> str:
    fewest, most = min(classes, key=lambda name: classes[name]), max(classes, key=lambda name: classes[name])
    if classes[fewest] == classes[most]:
        return f"{len(classes)} classes of {classes[most]} images"
    return f"{len(classes)} classes of {classes[fewest]} ({fewest}) to {classes[most]} ({most}) images"


def _hashes(num_images: int) -> Hashes:
    return np.zeros((num_images, 2), dtype=np.uint64)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:DIGEST]


def _groups(hashes: Hashes, readable: Bool[np.ndarray, " image"]) -> Iterator[Int64[np.ndarray, " member"]]:
    """The numbers of images with the same hash, two or more together."""
    images = np.flatnonzero(readable)
    order = images[np.lexsort((hashes[images, 1], hashes[images, 0]))]
    is_same = np.all(hashes[order[1:]] == hashes[order[:-1]], axis=1)
    # runs of equal neighbours alone, not one object per image
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_same, [False]]).astype(np.int8)))
    found = [np.sort(order[start : end + 1]) for start, end in edges.reshape(-1, 2)]
    yield from sorted(found, key=lambda group: int(group[0]))


def _differ(hashes: Hashes, group: Int64[np.ndarray, " member"]) -> bool:
    return bool(np.any(hashes[group] != hashes[group[0]]))


def _names(source: ImageSource, group: Int64[np.ndarray, " member"]) -> list[str]:
    return [source.name(int(index)) for index in group]


def _is_conflicting(source: ImageSource, group: Int64[np.ndarray, " member"]) -> bool:
    return source.labels is not None and len(np.unique(source.labels[group])) > 1


def _sizes(sizes: Int64[np.ndarray, "image 2"]) -> dict[str, list[int]]:
    if not len(sizes):
        return {}
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    chosen = {"smallest": order[0], "median": order[len(order) // 2], "largest": order[-1]}
    return {name: sizes[index].tolist() for name, index in chosen.items()}


def _classes(source: ImageSource) -> dict[str, int]:
    if source.labels is None:
        return {}
    counts = np.bincount(source.labels, minlength=len(source.classes))
    return dict(zip(source.classes, counts.tolist(), strict=True))
