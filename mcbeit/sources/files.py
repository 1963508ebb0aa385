"""Images that are files of their own: a folder tree, or an ImageFolder with labels."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class FileSource:
    """Images that are files below one root, their relative paths packed into one buffer (1 M paths: about 50 MB)."""

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        passed_over: Counter[str] | None = None,
    ) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self.root = root
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.classes = list(classes)
        self.passed_over = passed_over or Counter()
        self._text = b"".join(encoded)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """The file's path: the root as it was given, and the relative path below it."""
        start = int(self._ends[index - 1]) if index else 0
        return str(self.root / os.fsdecode(self._text[start : int(self._ends[index])]))

    def read(self, index: int) -> bytes:
        """The bytes of the file."""
        return Path(self.name(index)).read_bytes()

    def summary(self) -> dict[str, Any]:
        """By the paths below the root, so a folder may be moved; the content of files is not looked at."""
        names = hashlib.sha256(self._ends.tobytes() + self._text).hexdigest()
        return {"images": len(self), "names_sha256": names}


def open_folder(root: Path) -> FileSource:
    """Every image below `root`, at any depth, in sorted order; hidden files and folders are passed over."""
    others: Counter[str] = Counter()
    paths = [path for path in _walk(root) if _is_image(path, others)]
    if not paths:
        raise DataError(_no_images(root, others))
    return FileSource(root, paths, passed_over=others)


def open_imagefolder(root: Path) -> FileSource:
    """`root/CLASS/.../image`: the first folder below `root` is the label; classes are numbered in sorted order."""
    others: Counter[str] = Counter()
    paths = [path for path in _walk(root) if _is_image(path, others)]
    if not paths:
        raise DataError(_no_images(root, others))
    loose = [path for path in paths if os.sep not in path]
    if loose:
        raise DataError(
            f"'{root}' is not an ImageFolder: {len(loose)} images lie directly in it, such as '{loose[0]}'; "
            "put each into the folder of its class, or use the kind folder for images without labels"
        )
    names = [path.partition(os.sep)[0] for path in paths]
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return FileSource(root, paths, [number[name] for name in names], classes, others)


def _walk(root: Path) -> Iterator[str]:
    """The relative paths of all files below `root`, sorted folder by folder; links are followed, each folder once.

    Raises DataError if a folder cannot be read: its images would be missing without a word.
    """
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=_refuse):
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = os.path.relpath(folder, root)
        yield from (name if inner == "." else os.path.join(inner, name) for name in sorted(files))  # noqa: PTH118


def _refuse(error: OSError) -> None:
    raise DataError(
        f"the folder '{error.filename}' cannot be read: {error.strerror}; change its permissions or move it"
    )


def _is_image(path: str, others: Counter[str]) -> bool:
    name = os.path.basename(path)  # noqa: PTH119 - pathlib is ten times slower here
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    if name.startswith(".") or suffix not in SUFFIXES:
        others["hidden" if name.startswith(".") else suffix or name] += 1
        return False
    return True


def _no_images(root: Path, others: Counter[str]) -> str:
    found = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(4)) or "no files at all"
    return f"there is no image below '{root}' (found {found}); image files end in {', '.join(sorted(SUFFIXES))}"
