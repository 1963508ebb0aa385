"""A prepared folder: a tree of images with its manifest, built aside and put in place in one step."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mcbeit.atomic import exchange
from mcbeit.errors import DataError
from mcbeit.prepare.progress import say

SPLITS = ("train", "val")
MANIFEST = "manifest.json"
ATTRIBUTION = "ATTRIBUTION.md"
Counts = dict[str, dict[str, int]]  # what lies in the folder, such as a split -> a class of it -> number of files


class Source(BaseModel):
    """One package that the images were made from; `files` maps each file used to its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str
    package: str
    version: str
    licence: str
    files: dict[str, str]


class Manifest(BaseModel):
    """What a prepared folder holds; `sha256` covers the path and content of every file but the manifest itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    builder_version: int
    seed: int
    sources: list[Source]
    counts: Counts
    sha256: str


class Built(NamedTuple):
    """What a builder tells about the tree that it wrote."""

    sources: list[Source]
    attribution: str


def describe_classes(counts: Counts) -> str:
    """For example `60000 train + 10000 val images, 10 classes`."""
    totals = " + ".join(f"{sum(classes.values())} {split}" for split, classes in counts.items())
    return f"{totals} images, {len(set().union(*counts.values()))} classes"


@dataclass(frozen=True)
class DataSet:
    """How to build one data set.

    `build(tree, workspace)` writes the files and folders named by `entries` under `tree`: `train/CLASS/FILE` and
    `val/CLASS/FILE` if nothing else is said; `workspace` is removed afterwards. `builder_version` rises whenever the
    same sources give other files. `describe` says in a few words what was counted.
    """

    name: str
    builder_version: int
    seed: int
    build: Callable[[Path, Path], Built]
    entries: tuple[str, ...] = SPLITS
    describe: Callable[[Counts], str] = describe_classes


class Prepared(NamedTuple):
    """The outcome of `prepare_folder`."""

    state: Literal["already there", "built", "rebuilt"]
    manifest: Manifest


def prepare_folder(data_set: DataSet, out: Path, *, verify: bool = False) -> Prepared:
    """Make `out` hold the data set; a folder that already does is left as it is.

    The check counts the files; `verify` hashes them too. A damaged folder of the same data set is built again.
    Raises DataError if `out` holds anything else, and then touches nothing.
    """
    out = out.expanduser().resolve()
    manifest = _own_manifest(data_set, out)
    if manifest is not None:
        damage = find_damage(data_set, manifest, out, verify=verify)
        if damage is None:
            return Prepared("already there", manifest)
        say(f"{out}: {damage}; building it again")
    try:
        built = _build(data_set, out, replace=manifest is not None)
    except OSError as error:
        raise DataError(f"cannot build '{data_set.name}' in {out}: {error}\ncheck the disk and its rights") from error
    return Prepared("built" if manifest is None else "rebuilt", built)


def find_damage(data_set: DataSet, manifest: Manifest, out: Path, *, verify: bool) -> str | None:
    """Say in a few words why the folder has to be built again, or None if it is whole."""
    if manifest.builder_version != data_set.builder_version:
        return f"made by builder version {manifest.builder_version}, this is {data_set.builder_version}"
    if not (out / ATTRIBUTION).is_file():
        return f"{ATTRIBUTION} is missing"
    if count_files(out, data_set.entries) != manifest.counts:
        return "the number of files differs from the manifest"
    if verify and tree_sha256(out, data_set.entries) != manifest.sha256:
        return "the files differ from the manifest"
    return None


def count_files(root: Path, entries: Sequence[str] = SPLITS) -> Counts:
    """The number of files in each folder of each entry; under "" that of an entry's own files, if it has any.

    Hidden files, such as a file manager leaves behind, do not count.
    """
    counts: Counts = {}
    for entry in entries:
        if (root / entry).is_dir():
            folders = sorted(inner.path for inner in os.scandir(root / entry) if inner.is_dir())
            own = _count_files(str(root / entry))
            counts[entry] = {"": own} if own else {}
            counts[entry] |= {Path(folder).name: _count_files(folder) for folder in folders}
        elif (root / entry).is_file():
            counts[entry] = {"": 1}
    return counts


def tree_sha256(root: Path, entries: Sequence[str] = SPLITS) -> str:
    """One sha256 over the relative path and the content of every file of the entries and of the attribution."""
    paths = [root / ATTRIBUTION]
    for entry in entries:
        found = (root / entry, *(root / entry).rglob("*"))
        paths.extend(path for path in found if path.is_file() and not path.name.startswith("."))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_of(key: str, *, validation_share: float) -> str:
    """`train` or `val` by the hash of `key` alone, so that no later image moves an earlier one."""
    position = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "val" if position < validation_share else "train"


def _count_files(folder: str) -> int:
    return sum(entry.is_file() and not entry.name.startswith(".") for entry in os.scandir(folder))


def _own_manifest(data_set: DataSet, out: Path) -> Manifest | None:
    """The manifest that an earlier call wrote, None if `out` is free to be built."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; name a folder that is new or empty")
    if out.is_mount():
        raise DataError(f"{out} is a mount point and cannot be replaced; name a folder inside it")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    hint = "it was left as it is; name a folder that is new or empty"
    try:
        manifest = Manifest.model_validate_json((out / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{out} is not empty and was not made by 'mcbeit data prepare'\n{hint}") from error
    if manifest.name != data_set.name:
        raise DataError(f"{out} holds the data set '{manifest.name}', not '{data_set.name}'\n{hint}")
    foreign = _foreign_entries(data_set, manifest, out)
    if foreign:
        raise DataError(f"{out} also holds files of yours: {', '.join(foreign[:5])}\n{hint}, or move them away")
    return manifest


def _foreign_entries(data_set: DataSet, manifest: Manifest, out: Path) -> list[str]:
    """What no build has put there: building again would delete it."""
    found = {path.name for path in out.iterdir()} - {*data_set.entries, MANIFEST, ATTRIBUTION}
    for entry in data_set.entries:
        known = manifest.counts.get(entry, {})
        if (out / entry).is_dir():
            inner = [path for path in (out / entry).iterdir() if "" not in known or path.is_dir()]
            found |= {f"{entry}/{path.name}" for path in inner if path.name not in known}
    return sorted(name for name in found if not Path(name).name.startswith("."))


def _build(data_set: DataSet, out: Path, *, replace: bool) -> Manifest:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        tree, workspace = Path(temporary, "tree"), Path(temporary, "workspace")
        tree.mkdir()
        workspace.mkdir()
        built = data_set.build(tree, workspace)
        (tree / ATTRIBUTION).write_text(built.attribution, encoding="utf-8")
        manifest = Manifest(
            name=data_set.name,
            builder_version=data_set.builder_version,
            seed=data_set.seed,
            sources=built.sources,
            counts=count_files(tree, data_set.entries),
            sha256=tree_sha256(tree, data_set.entries),
        )
        text = json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False)
        (tree / MANIFEST).write_text(text + "\n", encoding="utf-8")
        os.sync()  # one call for many thousand files
        if replace:
            exchange(tree, out, aside=Path(temporary, "old"))
        else:
            _put_in_place(tree, out)
    return manifest


def _put_in_place(tree: Path, out: Path) -> None:
    """Rename to `out`, which must not exist or be empty."""
    try:
        tree.rename(out)
    except OSError as error:
        if out.is_dir() and any(out.iterdir()):
            raise DataError(f"{out} was filled by something else meanwhile; it was left as it is") from error
        raise
