"""Images that a text file names, with labels or without."""

import os
from typing import NamedTuple

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.files import FileSource, open_named
from mcbeit.sources.labels import check_label


class Listed(NamedTuple):
    """What a list file says: paths, and for each the number of its class, or no labels at all."""

    paths: list[str]
    labels: list[int] | None
    classes: list[str]


def open_list(path: str, *, channels: int = COLOURS) -> FileSource:
    """A text file with one `relative/path label` per line, or one path per line without labels.

    This is the official `train_map.txt`: the label is the integer after the last space or tab; paths may hold spaces.
    Paths are relative to the file's folder or, for `NAME_map.txt`, to the folder `NAME` beside it if there is one. They
    may be URLs, and beside a list behind a URL they are; whether these are there shows only when they are read.
    """
    listed = read_list(path)
    return open_named(_list_root(path), *listed, where=path, channels=channels)


def read_list(path: str) -> Listed:
    """The lines of a list file. Raises DataError if it is no text, is empty, or only some lines have a label."""
    try:
        lines = [line.strip() for line in location.read_bytes(path).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not a list file: it is not UTF-8 text ({error.reason})") from error
    entries = [_split_label(line) for line in lines if line]
    if not entries:
        raise DataError(f"the list file '{path}' names no image; it needs one 'relative/path label' per line")
    labelled = [label is not None for _, label in entries]
    if any(labelled) and not all(labelled):
        line = labelled.index(False)
        raise DataError(
            f"'{path}' has {sum(labelled)} lines with a label and {labelled.count(False)} without, such as "
            f"'{entries[line][0]}'; give every line an integer label, or none"
        )
    labels = [label for _, label in entries if label is not None]
    check_label(max(labels, default=0), path)
    classes = [str(i) for i in range(max(labels) + 1)] if labels else []
    return Listed([name for name, _ in entries], labels or None, classes)


def _split_label(line: str) -> tuple[str, int | None]:
    *name, label = line.rsplit(maxsplit=1)
    return (name[0], int(label)) if name and label.isascii() and label.isdigit() else (line, None)


def _list_root(path: str) -> str:
    folder, (stem, _) = location.parent(path), os.path.splitext(location.base_name(path))  # noqa: PTH122
    beside = location.join(folder, stem.removesuffix("_map"))
    return beside if stem.endswith("_map") and location.is_folder(beside) else folder
