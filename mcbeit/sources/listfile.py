"""Images that a text file names, with labels or without."""

import os
from pathlib import Path

from mcbeit.errors import DataError
from mcbeit.sources.files import FileSource

MAX_LABEL = 10**6


def open_list(path: Path) -> FileSource:
    """A text file with one `relative/path label` per line, or one path per line without labels.

    This is the official `train_map.txt`: the label is the integer after the last space or tab; paths may hold spaces.
    Paths are relative to the file's folder or, for `NAME_map.txt`, to the folder `NAME` beside it if there is one.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
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
    root = _list_root(path)
    missing = [name for name, _ in entries if not os.path.isfile(root / name)]  # noqa: PTH113 - takes any text
    if missing:
        raise DataError(
            f"'{path}' does not match the files below '{root}': {len(missing)} of {len(entries)} are missing, "
            f"the first is '{missing[0]:.200}'"
        )
    labels = [label for _, label in entries if label is not None]
    if labels and max(labels) > MAX_LABEL:
        raise DataError(f"'{path}' has the label {max(labels)}; number the classes from 0 on, to at most {MAX_LABEL}")
    classes = [str(i) for i in range(max(labels) + 1)] if labels else []
    return FileSource(root, [name for name, _ in entries], labels or None, classes)


def _split_label(line: str) -> tuple[str, int | None]:
    *name, label = line.rsplit(maxsplit=1)
    return (name[0], int(label)) if name and label.isascii() and label.isdigit() else (line, None)


def _list_root(path: Path) -> Path:
    beside = path.parent / path.stem.removesuffix("_map")
    return beside if path.stem.endswith("_map") and beside.is_dir() else path.parent
