"""Images that are files of their own: a folder tree, or an ImageFolder with labels."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.source import Described, Labels, PackedNames, suffixes


class FileSource(Described):
    """Images that are files below one root, a folder or a URL."""

    def __init__(
        self,
        root: Path | str,
        paths: Sequence[str],
        labels: Sequence[int] | Labels | None = None,
        classes: Sequence[str] = (),
        passed_over: Counter[str] | None = None,
        channels: int = COLOURS,
    ) -> None:
        numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
        super().__init__(labels=numbers, classes=classes, passed_over=passed_over, channels=channels)
        self.root = str(root)
        self._paths = PackedNames(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The file's path: the root as it was given, and the relative path below it."""
        return location.join(self.root, self._paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of the file."""
        return location.read_bytes(self.name(index))

    def summary(self) -> dict[str, Any]:
        """By the paths below the root, so a folder may be moved; the content of files is not looked at."""
        return {"images": len(self), "names_sha256": hashlib.sha256(self._paths.hashed()).hexdigest()}


def open_folder(root: Path | str, *, channels: int = COLOURS) -> FileSource:
    """Every image below `root`, at any depth, in sorted order; hidden files and folders are passed over."""
    paths, others = _find(str(root), channels)
    return FileSource(root, paths, passed_over=others, channels=channels)


def open_imagefolder(root: Path | str, *, channels: int = COLOURS) -> FileSource:
    """`root/CLASS/.../image`: the first folder below `root` is the label; classes are numbered in sorted order."""
    paths, others = _find(str(root), channels)
    loose = [path for path in paths if "/" not in path]
    if loose:
        raise DataError(
            f"'{root}' is not an ImageFolder: {len(loose)} images lie directly in it, such as '{loose[0]}'; "
            "put each into the folder of its class, or use the kind folder for images without labels"
        )
    names = [path.partition("/")[0] for path in paths]
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return FileSource(root, paths, [number[name] for name in names], classes, others, channels)


def open_named(
    root: Path | str,
    paths: Sequence[str],
    labels: Sequence[int] | Labels | None = None,
    classes: Sequence[str] = (),
    *,
    where: str,
    channels: int = COLOURS,
) -> FileSource:
    """The images below `root` that the file `where` names. Raises DataError if any is missing.

    Files behind a URL are not looked for: each would be a request.
    """
    missing = [path for path in paths if not _is_there(location.join(str(root), path))]
    if missing:
        raise DataError(
            f"'{where}' does not match the files below '{root or '.'}': {len(missing)} of {len(paths)} are missing, "
            f"the first is '{missing[0]:.200}'"
        )
    return FileSource(root, paths, labels, classes, channels=channels)


def suffix_of(path: str) -> str:
    """How the path ends, in small letters; "hidden" for a hidden file, the whole name where nothing tells its kind."""
    name = os.path.basename(path)  # noqa: PTH119 - pathlib is ten times slower here
    return "hidden" if name.startswith(".") else os.path.splitext(name)[1].lower() or name  # noqa: PTH122


def _find(root: str, channels: int) -> tuple[list[str], Counter[str]]:
    """The images below a folder, and how many files of each other suffix there are. Raises DataError without images."""
    wanted = suffixes(channels)
    others: Counter[str] = Counter()
    paths = []
    for path in location.walk(root):
        if (suffix := suffix_of(path)) in wanted:
            paths.append(path)
        else:
            others[suffix] += 1
    if not paths:
        found = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(4)) or "no files at all"
        raise DataError(
            f"there is no image below '{root}' (found {found}); image files end in {', '.join(sorted(wanted))}"
        )
    return paths, others


def _is_there(path: str) -> bool:
    return location.is_url(path) or os.path.isfile(path)  # noqa: PTH113 - takes any text
