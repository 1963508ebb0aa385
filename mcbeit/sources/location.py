"""Where the files of a source lie. A location is the text of a path, or of a URL that fsspec understands.

Reads are stateless, so that a source pickles small and serves in any process, forked or spawned.
"""

import functools
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from mcbeit.errors import DataError
from mcbeit.sources import remote

MAX_EXPANDED = 10**5  # names that braces may stand for
OPEN_FILES = 64  # handles that a process keeps
MAX_DESCRIBED = 8  # names in a message

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Stamp(NamedTuple):
    """By what a file is known again."""

    size: int  # bytes
    changed: int  # nanoseconds, or for a URL the hash of what its storage tells; 0 if that tells nothing


def is_url(location: str) -> bool:
    """Whether fsspec has to open it."""
    return "://" in location


def exists(location: str) -> bool:
    """Whether a file or folder is there."""
    return remote.exists(location) if is_url(location) else os.path.exists(location)  # noqa: PTH110 - takes any text


def is_folder(location: str) -> bool:
    """Whether it is there and holds files."""
    return remote.is_folder(location) if is_url(location) else os.path.isdir(location)  # noqa: PTH112


def join(root: str, path: str) -> str:
    """The location of a file below a folder; a path that is a location of its own stays what it is."""
    if is_url(path):
        return path
    return remote.join(root, path) if is_url(root) else os.path.join(root, path)  # noqa: PTH118


def parent(location: str) -> str:
    """The folder that holds it."""
    return remote.parent(location) if is_url(location) else os.path.dirname(location)  # noqa: PTH120


def base_name(location: str) -> str:
    """Its last part."""
    return remote.base_name(location) if is_url(location) else os.path.basename(location)  # noqa: PTH119


def read_bytes(location: str) -> bytes:
    """The whole file. Raises OSError."""
    return remote.read(location) if is_url(location) else Path(location).read_bytes()


def read_range(location: str, stamp: Stamp, start: int, size: int) -> bytes:
    """A part of a file. Raises OSError if it cannot be read, has changed, or ends before the part does."""
    if is_url(location):
        data = remote.read(location, start, start + size)
    else:
        data = _handle(location, stamp).read(start, size)
    if len(data) != size:
        raise OSError(f"'{location}' ends at byte {start + len(data)}, before the end of an image")
    return data


def open_file(location: str) -> io.IOBase:
    """The file for reading from anywhere in it. Raises OSError."""
    # unbuffered: what is read are headers, far from each other
    return remote.open_file(location) if is_url(location) else Path(location).open("rb", buffering=0)


def stamp_of(location: str) -> Stamp:
    """The size of a file, and when it was changed. Raises OSError."""
    return Stamp(*remote.size_and_version(location)) if is_url(location) else _stamp(os.stat(location))  # noqa: PTH116


def walk(root: str) -> Iterator[str]:
    """The relative paths of all files below a folder: its own in sorted order, then those of each folder in it.

    Links are followed, each folder once; hidden folders are passed over. Raises DataError if a folder cannot be read:
    its images would be missing without a word.
    """
    if is_url(root):
        yield from remote.walk(root)
        return
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


def names(folder: str) -> list[str]:
    """The names of what lies directly in a folder, sorted; hidden ones are passed over. Raises DataError."""
    if is_url(folder):
        found = remote.names(folder)
    else:
        try:
            found = os.listdir(folder)  # noqa: PTH208 - names are all that is wanted
        except OSError as error:
            _refuse(error)
    return sorted(name for name in found if not name.startswith("."))


def describe(folder: str) -> str:
    """What lies directly in a folder, for a message."""
    found = names(folder)
    more = f" and {len(found) - MAX_DESCRIBED} more" if len(found) > MAX_DESCRIBED else ""
    return f"found {', '.join(found[:MAX_DESCRIBED])}{more}" if found else "it is empty"


def expand(location: str) -> list[str]:
    """The locations that a name with braces or wildcards stands for, as a shell would: in order, wildcards sorted.

    `{000..127}` counts, `{a,b}` lists, `*`, `?` and `[a-z]` match what is there, `**` any depth. A path that exists as
    it is written stands for itself. Raises DataError if nothing matches.
    """
    location = location if is_url(location) else os.path.expanduser(location)  # noqa: PTH111
    if not _BRACES.search(location) and not _has_wildcards(location):
        return [location]
    if not is_url(location) and exists(location):
        return [location]
    found: list[str] = []
    for name in _without_braces(location):
        matches = _match(name) if _has_wildcards(name) else [name]
        if not matches:
            raise DataError(f"nothing matches '{name}' (looked from {Path.cwd()})")
        found += matches
    return found


def _match(pattern: str) -> list[str]:
    return remote.match(pattern) if is_url(pattern) else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207


def _has_wildcards(location: str) -> bool:
    """In a URL, `?` begins a query."""
    return any(mark in location for mark in ("*[" if is_url(location) else "*?["))


def _without_braces(name: str) -> list[str]:
    braces = _BRACES.search(name)
    if braces is None:
        return [name]
    if counted := _RANGE.fullmatch(braces[1]):
        first, last = int(counted[1]), int(counted[2])
        numbers = range(first, last + 1) if last >= first else range(first, last - 1, -1)
        choices: Sequence[str] = [f"{number:0{len(counted[1])}}" for number in numbers[: MAX_EXPANDED + 1]]
    else:
        choices = braces[1].split(",")
    ends = _without_braces(name[braces.end() :])
    if len(choices) * len(ends) > MAX_EXPANDED:
        raise DataError(f"'{name}' stands for more than {MAX_EXPANDED} names; use fewer, or a list of sources")
    return [name[: braces.start()] + choice + end for choice in choices for end in ends]


class _Handle:
    """An open file; closed when nobody holds it any more. Positions are not used, so processes may share it."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, start)


@functools.lru_cache(maxsize=OPEN_FILES)
def _handle(path: str, stamp: Stamp) -> _Handle:
    handle = _Handle(path)
    if _stamp(os.fstat(handle.descriptor)) != stamp:
        raise OSError(f"'{path}' has changed since it was opened")
    return handle


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, status.st_mtime_ns)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"the folder '{error.filename}' cannot be read: {error.strerror}; change its permissions or move it"
    )
