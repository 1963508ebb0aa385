"""An index on the disk: `manifest.json`, which names a folder beside it that holds the files.

    DIR/manifest.json           what it is, and which folder is the current one
    DIR/data-1f0c9a2b/          index.faiss, items.sqlite; vectors.npy where index.faiss does not hold whole vectors

A new index is written beside the old one, and becomes the index with the rename of the manifest. So a reader sees the
old one or the new one, whatever is killed when.
"""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from mcbeit.atomic import sync, write_json
from mcbeit.config import Config
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import VectorIndexError
from mcbeit.index_kinds import IndexConfig, IndexKind
from mcbeit.temporary import temporary_folder

MANIFEST = "manifest.json"
VECTORS, ITEMS, WHOLE_VECTORS = "index.faiss", "items.sqlite", "vectors.npy"
OURS = re.compile(r"data-[0-9a-f]{8}|mcbeit-index-.*|\.?manifest\.json(\.partial)?")


class IndexManifest(Config):
    """What an index is."""

    format: Literal["mcbeit-index-1"] = "mcbeit-index-1"
    kind: IndexKind
    metric: Literal["cosine"] = "cosine"  # the inner product of vectors of unit length
    count: int = Field(ge=1)
    encoder: EncoderSpec  # of all its vectors
    config: IndexConfig
    folder: str = Field(pattern=r"^data-[0-9a-f]{8}$")
    sha256: dict[str, str]  # of every file in the folder
    versions: dict[str, str]


def read_manifest(path: Path) -> IndexManifest:
    """The manifest of an index. Raises VectorIndexError if there is none."""
    file = path / MANIFEST
    try:
        return IndexManifest.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise VectorIndexError(f"there is no index at '{path}'; build one: mcbeit index build ... -o {path}") from error
    except OSError as error:
        raise VectorIndexError(f"'{file}' cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise VectorIndexError(
            f"'{file}' is not the manifest of an index that this version reads ({where}: {first['msg']}); "
            "build the index again"
        ) from error


@contextmanager
def staging(out: Path, *, force: bool) -> Iterator[Path]:
    """A folder inside `out` to write files to, until they are published.

    Raises VectorIndexError if `out` holds an index already, unless it may be replaced, or anything else.
    """
    _check_free(out, force=force)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VectorIndexError(f"the index cannot be written to '{out}': {error.strerror}") from error
    try:
        with temporary_folder("index", out) as folder:
            data = folder / "data"  # the outer folder is for the user alone, an index is for whom the umask says
            data.mkdir()
            yield data
    finally:
        with suppress(OSError):
            out.rmdir()  # if nothing came of it


def publish(data: Path, out: Path, manifest: IndexManifest, *, force: bool) -> None:
    """Make the files of a staged folder the index, and remove what was one before."""
    for file in data.iterdir():
        sync(file)
    sync(data)
    with _alone(out):
        _check_free(out, force=force)  # another build may have been faster
        data.rename(out / manifest.folder)
        sync(out)
        write_json(out / MANIFEST, manifest.model_dump(mode="json"))
        sync(out)
        for superseded in out.glob("data-*"):
            if OURS.fullmatch(superseded.name) and superseded.name != manifest.folder:
                shutil.rmtree(superseded, ignore_errors=True)


def new_folder_name() -> str:
    """The name of the folder of an index that is to be published."""
    return f"data-{secrets.token_hex(4)}"


def hash_files(data: Path) -> dict[str, str]:
    """The sha256 of every file in a folder."""
    found = {}
    for path in sorted(data.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def check_files_exist(path: Path, manifest: IndexManifest) -> None:
    """Raise VectorIndexError if a file of an index is not there."""
    if missing := [name for name in manifest.sha256 if not (path / manifest.folder / name).is_file()]:
        raise VectorIndexError(f"the index '{path}' lacks '{manifest.folder}/{missing[0]}'; build it again")


def check_files(path: Path, manifest: IndexManifest) -> None:
    """Read all files of an index; raise VectorIndexError if one is not what was written."""
    check_files_exist(path, manifest)
    found = hash_files(path / manifest.folder)
    if changed := [name for name, digest in manifest.sha256.items() if found.get(name) != digest]:
        raise VectorIndexError(f"the index '{path}' is damaged: {', '.join(changed)} changed; build it again")


def _check_free(out: Path, *, force: bool) -> None:
    if out.is_file():
        raise VectorIndexError(f"'{out}' is a file; an index is a folder, name one that is new")
    if not out.is_dir():
        return
    foreign = sorted(path.name for path in out.iterdir() if not OURS.fullmatch(path.name))
    if foreign:
        raise VectorIndexError(f"'{out}' holds other things, such as '{foreign[0]}'; name a folder that is new")
    if (out / MANIFEST).exists() and not force:
        raise VectorIndexError(f"there is an index at '{out}' already; replace it with --force, or name another folder")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process publishes there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
