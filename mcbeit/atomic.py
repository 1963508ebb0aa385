"""Files that are there whole or not at all: written under a temporary name, synced, renamed."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_bytes` does; numbers that are not finite become null, which JSON has no word for."""
    write_bytes(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def finite(value: Any) -> Any:
    """The same JSON value with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `replacing` does."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under; it is synced and renamed: a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to write files to that takes its name, in the place of what was there, only if nothing fails."""
    path = path.absolute()
    partial, old = (path.with_name(f".{path.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        for file in (*partial.rglob("*"), partial):
            sync(file)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            exchange(partial, path, aside=old)
        else:
            partial.replace(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def exchange(new: Path, path: Path, *, aside: Path) -> None:
    """Put a folder in the place of another, which goes aside, and comes back if that fails."""
    path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        aside.rename(path)
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
