"""Where images come from: a folder tree, an ImageFolder with labels, or a list file; checked before work starts.

A source gives the encoded bytes of image `i`; decoding is somebody else's. A further kind of source is one more class
with the members of `ImageSource` and one more entry in `open_source`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from mcbeit.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
SourceKind = Literal["auto", "folder", "imagefolder", "list"]
MAX_LABEL = 10**6
PREPARED = ("emoji", "fashion-mnist", "photos")  # of `mcbeit data prepare`
Labels = Int[np.ndarray, " image"]


@runtime_checkable
class ImageSource(Protocol):
    """An ordered collection of encoded images, with labels if it knows them."""

    labels: Labels | None
    classes: list[str]
    passed_over: Counter[str]  # files that no image can be in, by suffix

    def __len__(self) -> int:
        """The number of images, readable or not."""

    def name(self, index: int) -> str:
        """What a person calls the image: its path."""

    def read(self, index: int) -> bytes:
        """The encoded image; raises OSError if it cannot be read."""

    def summary(self) -> dict[str, Any]:
        """The number of images, and a hash that is another one if they are, or are called, otherwise; for JSON."""


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


class JoinedSource:
    """Several sources one after the other; labelled only if all are, and then by class name."""

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.classes = sorted({name for part in parts for name in part.classes}, key=_class_order)
        self.passed_over = sum((part.passed_over for part in parts), Counter[str]())
        number = {name: i for i, name in enumerate(self.classes)}
        labels = [
            np.asarray([number[name] for name in part.classes], dtype=np.int64)[part.labels]
            for part in parts
            if part.labels is not None
        ]
        self.labels = np.concatenate(labels) if len(labels) == len(parts) else None
        if self.labels is None:
            self.classes = []

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> tuple[ImageSource, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def name(self, index: int) -> str:
        """The path within the part that holds the image."""
        part, inner = self._find(index)
        return part.name(inner)

    def read(self, index: int) -> bytes:
        """The bytes from the part that holds the image."""
        part, inner = self._find(index)
        return part.read(inner)

    def summary(self) -> dict[str, Any]:
        """By the summaries of the parts, in their order."""
        names = hashlib.sha256(json.dumps([part.summary() for part in self.parts]).encode()).hexdigest()
        return {"images": len(self), "names_sha256": names}


def open_source(
    location: str | Sequence[str], kind: SourceKind = "auto", *, folders: Literal["folder", "imagefolder"] = "folder"
) -> ImageSource:
    """Open one location, or several as one source.

    `auto` takes a file as a list and a folder as `folders` says: an unlabelled tree, or an ImageFolder. Raises
    DataError if a location is missing, holds no image, or if its labels do not match.
    """
    locations = [location] if isinstance(location, str) else location
    if not locations:
        raise DataError("the list of image sources is empty; name at least one folder or list file")
    parts = [_open_one(Path(part).expanduser(), kind, folders) for part in locations]
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open_one(path: Path, kind: SourceKind, folders: Literal["folder", "imagefolder"]) -> ImageSource:
    if not path.exists():
        raise DataError(f"there is no image source at '{path}' (looked from {Path.cwd()}){_how_to_make(path)}")
    if kind == "auto":
        kind = folders if path.is_dir() else "list"
    if kind == "list" and path.is_dir():
        raise DataError(f"'{path}' is a folder, but a list file was asked for; use the kind folder or imagefolder")
    if kind != "list" and not path.is_dir():
        raise DataError(f"'{path}' is a file, but a folder of images was asked for; use the kind list for a list file")
    openers = {"folder": open_folder, "imagefolder": open_imagefolder, "list": open_list}
    return openers[kind](path)


def source_notes(source: ImageSource) -> list[str]:
    """What a person should know of a source before it is used."""
    if not source.passed_over:
        return []
    found = ", ".join(f"{count} x {suffix}" for suffix, count in source.passed_over.most_common(4))
    return [f"{source.passed_over.total()} files of other kinds are passed over: {found}"]


def _class_order(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, before words."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name


def _how_to_make(path: Path) -> str:
    """What to type if the presets' own images are not there yet: they lie at data/NAME/SPLIT."""
    folder = path.parent
    if path.name not in ("train", "val") or folder.name not in PREPARED:
        return ""
    return f"; make it: mcbeit data prepare {folder.name} {folder}"


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
