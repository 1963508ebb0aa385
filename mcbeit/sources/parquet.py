"""Parquet files with a column of images, as Hugging Face's data sets have them.

A parquet file is read by row groups, and a global shuffle asks for a row of another group nearly every time. So the
price of an image is that of reading its whole group: small groups are good, and large ones get a note.
"""

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.labels import Numbered, number_labels
from mcbeit.sources.parquet_table import Rows, Table, describe_table, read_rows
from mcbeit.sources.source import Damage, Described

CACHE_BYTES = 64 * 2**20  # of row groups that a process keeps; one at least
THREADS = 8  # files that are described at a time: it is waiting for storage, mostly
LARGE_GROUP = 4 * 2**20  # bytes; reading as much takes about as long as decoding an image

_SPLIT_FILE = re.compile(r"(.+)-\d+-of-\d+(-\w+)?\.parquet")
_SPLIT_FOLDERS = ("train", "test", "validation", "val", "valid", "dev")
_READING = threading.Lock()  # open files, which sources may share, and caches are for one thread at a time


class ParquetSource(Described):
    """Rows of parquet files, row group by row group."""

    def __init__(self, tables: Sequence[Table], channels: int = COLOURS) -> None:
        named = _labels(tables)
        super().__init__(
            labels=named.labels,
            classes=named.classes,
            notes=[*named.notes, *_large_groups(tables)],
            channels=channels,
            damaged=_damaged(tables),
        )
        self._files = [(table.name, table.stamp, table.column) for table in tables]
        sizes = [np.array(table.group_rows, dtype=np.int64) for table in tables]
        self._group_starts = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64)
        self._file_groups = np.cumsum([0, *(len(rows) for rows in sizes)], dtype=np.int64)
        self._file_starts = self._group_starts[self._file_groups]
        self._cache: OrderedDict[int, Rows] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self._group_starts[-1])

    def name(self, index: int) -> str:
        """The file, a colon, and the row in it, from 0 on."""
        file = int(np.searchsorted(self._file_starts, index, side="right")) - 1
        return f"{self._files[file][0]}:{index - int(self._file_starts[file])}"

    def read(self, index: int) -> bytes:
        """The bytes in the row, or those of the file that it names."""
        group = int(np.searchsorted(self._group_starts, index, side="right")) - 1
        file = int(np.searchsorted(self._file_groups, group, side="right")) - 1
        with _READING:
            rows = self._rows(group, file)
        found = rows.image(index - int(self._group_starts[group]))
        if isinstance(found, bytes):
            return found
        if found is None:
            raise OSError("the row has neither the bytes nor the path of an image")
        path = location.join(location.parent(self._files[file][0]), found)
        try:
            return location.read_bytes(path)
        except OSError as error:
            raise OSError(f"the row holds no bytes but the path '{found}', and '{path}' cannot be read") from error

    def summary(self) -> dict[str, Any]:
        """By the names of the files and their numbers of rows, so files may be moved, and regrouped; not by content."""
        files = "\0".join(location.base_name(name) for name, _, _ in self._files)
        names = hashlib.sha256(os.fsencode(files) + self._file_starts.tobytes()).hexdigest()
        return {"images": len(self), "names_sha256": names}

    def _rows(self, group: int, file: int) -> Rows:
        """A row group, from the cache if it is there: images in their order, as probes ask for them, share it."""
        if (rows := self._cache.get(group)) is not None:
            self._cache.move_to_end(group)
            return rows
        name, stamp, column = self._files[file]
        rows = read_rows(name, stamp, group - int(self._file_groups[file]), column)
        self._cache[group] = rows
        while len(self._cache) > 1 and sum(kept.num_bytes for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return rows


def open_parquet(files: Sequence[str], *, channels: int = COLOURS) -> ParquetSource:
    """The images of parquet files, in the order of the files and rows. Only their footers and labels are read.

    Files that cannot be read are left out and noted. Raises DataError if a file is not there or has no column of
    images, or if there is no row in any of them.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(describe_table, files))
    if not any(table.num_rows for table in tables):
        reason = next((f"'{table.name}': {table.reason}" for table in tables if table.reason), "they have no rows")
        raise DataError(f"there is no image in {len(files)} parquet files such as '{files[0]}' ({reason})")
    return ParquetSource(tables, channels)


def check_splits(folder: str, files: Sequence[str]) -> None:
    """Raise DataError if the files below a folder are of several splits, which nobody wants to mix unasked."""
    splits: dict[str, str] = {}
    for file in files:
        name, inside = location.base_name(file), location.parent(file)
        if matched := _SPLIT_FILE.fullmatch(name):
            splits.setdefault(matched[1], location.join(inside, f"{matched[1]}-*.parquet"))
        elif (split := location.base_name(inside)) in _SPLIT_FOLDERS:
            splits.setdefault(split, inside)
    if len(splits) > 1:
        first = "train" if "train" in splits else next(iter(splits))
        raise DataError(
            f"'{folder}' holds the splits {', '.join(splits)}; name one of them, such as '{splits[first]}', or all of "
            f"them with '{location.join(folder, '**/*.parquet')}'"
        )


def _labels(tables: Sequence[Table]) -> Numbered:
    readable = [table for table in tables if table.num_rows]
    names = readable[0].class_names
    if other := next((table for table in readable if table.class_names != names), None):
        raise DataError(
            f"'{readable[0].name}' and '{other.name}' name their classes otherwise; use them as two sources"
        )
    return number_labels([label for table in readable for label in table.labels], readable[0].name, names)


def _large_groups(tables: Sequence[Table]) -> list[str]:
    num_groups = sum(len(table.group_rows) for table in tables)
    rows, size = sum(table.num_rows for table in tables), sum(table.num_bytes for table in tables)
    if size <= LARGE_GROUP * num_groups:
        return []
    megabytes = size / num_groups / 2**20
    return [
        f"the row groups of '{tables[0].name}' have {rows / num_groups:.0f} rows and {megabytes:.0f} MB on average, "
        "and each image that is read costs reading so much; docs/sources.md shows how to write smaller ones"
    ]


def _damaged(tables: Sequence[Table]) -> list[Damage]:
    """An unreadable file has lost as many images as readable ones have on average, but at least one."""
    whole = [table.num_rows for table in tables if table.reason is None]
    usual = max(round(sum(whole) / len(whole)), 1) if whole else 1
    return [Damage(table.name, table.reason, usual) for table in tables if table.reason is not None]
