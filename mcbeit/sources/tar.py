"""Tar shards, of WebDataset or of any folder: images are read straight out of them, in any order."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location, tar_cache
from mcbeit.sources.labels import Numbered, number_labels
from mcbeit.sources.location import Stamp
from mcbeit.sources.source import Damage, Described, PackedNames, suffixes
from mcbeit.sources.tar_index import Shard, read_class_tars, read_index, reason_of

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
THREADS = 8  # shards that are indexed at a time: it is waiting for storage, mostly


class TarSource(Described):
    """Images at known places in tar files; 20 bytes each, and their names."""

    def __init__(self, shards: Sequence[Shard], channels: int = COLOURS) -> None:
        named = _labels(shards)
        super().__init__(
            labels=named.labels,
            classes=named.classes,
            notes=named.notes,
            passed_over=sum((shard.passed_over for shard in shards[1:]), shards[0].passed_over),
            channels=channels,
            damaged=_damaged(shards),
        )
        self._shards = [(shard.name, shard.stamp) for shard in shards]
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.names) for shard in shards])
        self._starts = np.concatenate([np.array(shard.starts, dtype=np.int64) for shard in shards])
        self._sizes = np.concatenate([np.array(shard.sizes, dtype=np.int64) for shard in shards])
        self._names = PackedNames(name for shard in shards for name in shard.names)

    def __len__(self) -> int:
        return len(self._starts)

    def name(self, index: int) -> str:
        """The shard, a colon, and the path in it."""
        return f"{self._shards[self._shard[index]][0]}:{self._names[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of the member."""
        shard, stamp = self._shards[self._shard[index]]
        return location.read_range(shard, stamp, int(self._starts[index]), int(self._sizes[index]))

    def summary(self) -> dict[str, Any]:
        """By the names of shards and members, so that shards may be moved together; content is not looked at."""
        shards = "\0".join(location.base_name(name) for name, _ in self._shards)
        names = os.fsencode(shards) + self._shard.tobytes() + self._names.hashed()
        return {"images": len(self), "names_sha256": hashlib.sha256(names).hexdigest()}


def open_tar(shards: Sequence[str], *, channels: int = COLOURS) -> TarSource:
    """The images of tar files, in the order of the files and of their members. Only headers and labels are read.

    What can be read of a damaged shard is used. Raises DataError if a shard is not there, is compressed, or if there is
    no image in any of them.
    """
    for shard in shards:
        if shard.lower().endswith(COMPRESSED):
            raise DataError(
                f"'{shard}' is compressed as a whole, so no image in it can be read without all before it; unpack it "
                "into a plain .tar (gunzip, bunzip2, unxz or unzstd: images hardly shrink anyway)"
            )
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda shard: _index(shard, suffixes(channels)), shards))
    _drop_incomplete(found)
    return _source(found, channels)


def open_class_tars(path: str, *, channels: int = COLOURS) -> TarSource:
    """The images of a tar file of tar files, one per class: `ILSVRC2012_img_train.tar`. Raises DataError likewise."""
    return _source([_index(path, suffixes(channels) | {".tar"})], channels)


def _source(found: Sequence[Shard], channels: int) -> TarSource:
    if not any(shard.names for shard in found):
        others = ", ".join(f"{count} x {suffix}" for suffix, count in found[0].passed_over.most_common(4))
        reasons = [f"'{shard.name}': {shard.reason}" for shard in found if shard.reason]
        why = reasons[0] if reasons else f"found {others or 'no files at all'}"
        raise DataError(f"there is no image in {len(found)} tar files such as '{found[0].name}' ({why})")
    return TarSource(found, channels)


def _index(name: str, suffixes: frozenset[str]) -> Shard:
    """Kept or read; with `.tar` among the suffixes, of the tar files in it.

    Raises DataError if the file is not there; other trouble is the shard's `reason`.
    """
    try:
        stamp = location.stamp_of(name)
    except FileNotFoundError as error:
        raise DataError(f"there is no tar file '{name}'") from error
    except OSError as error:
        return Shard(name, Stamp(0, 0), reason=reason_of(error))
    if (kept := tar_cache.recall(name, stamp, suffixes)) is not None:
        return kept
    shard = (read_class_tars if ".tar" in suffixes else read_index)(name, stamp, suffixes)
    tar_cache.keep(shard, suffixes)
    return shard


def _drop_incomplete(shards: Sequence[Shard]) -> None:
    """Where others have labels, an image at the end of a damaged shard has lost its own with what followed."""
    if any(label is not None for shard in shards for label in shard.labels):
        for shard in shards:
            if shard.reason is not None and shard.labels[-1:] == [None]:
                shard.drop_last()


def _labels(shards: Sequence[Shard]) -> Numbered:
    return number_labels([label for shard in shards for label in shard.labels], shards[0].name)


def _damaged(shards: Sequence[Shard]) -> list[Damage]:
    """A damaged shard has lost what whole shards have more than it, on average, but at least one image."""
    whole = [len(shard.names) for shard in shards if shard.reason is None]
    usual = round(sum(whole) / len(whole)) if whole else 0
    return [
        Damage(shard.name, shard.reason, max(usual - len(shard.names), 1))
        for shard in shards
        if shard.reason is not None
    ]
