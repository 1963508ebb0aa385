"""From what a person names as `data.source` to a source, checked before work starts.

A further kind of source is one more module with the members of `ImageSource` and one more branch of `_open_kind`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.files import open_folder, open_imagefolder, suffix_of
from mcbeit.sources.joined import JoinedSource
from mcbeit.sources.listfile import open_list
from mcbeit.sources.parquet import check_splits, open_parquet
from mcbeit.sources.source import ImageSource, suffixes
from mcbeit.sources.tar import COMPRESSED, open_tar

SourceKind = Literal["auto", "folder", "imagefolder", "list", "tar", "parquet"]
FolderKind = Literal["folder", "imagefolder"]
SHARD_SUFFIXES: dict[SourceKind, str] = {"tar": ".tar", "parquet": ".parquet"}
PREPARED = (  # of `mcbeit data prepare`
    "emoji",
    "emoji-ade",
    "emoji-ade-agnostic",
    "emoji-coco",
    "emoji-coco-agnostic",
    "emoji-styles",
    "fashion-mnist",
    "photos",
)
SPLIT_FOLDERS = ("train", "val", "train2017", "val2017", "images/training", "images/validation")  # in one of them


def open_source(
    place: str | Sequence[str],
    kind: SourceKind = "auto",
    *,
    folders: FolderKind = "folder",
    channels: int = COLOURS,
) -> ImageSource:
    """Open one location, or several as one source. Each is a path or a URL, and may have braces and wildcards.

    `auto` takes .tar and .parquet files as shards, any other file as a list, a folder of nothing but shards as these,
    and any other folder as `folders` says: an unlabelled tree, or an ImageFolder. Raises DataError if a location is
    missing, holds no image, or if its labels do not match.
    """
    places = [place] if isinstance(place, str) else place
    if not places:
        raise DataError("the list of image sources is empty; name at least one folder or list file")
    parts = [part for one in places for part in _open_one(one, kind, folders, channels)]
    return parts[0] if len(parts) == 1 else JoinedSource(parts)


def _open_one(place: str, kind: SourceKind, folders: FolderKind, channels: int) -> list[ImageSource]:
    found = location.expand(place)
    kinds = [_kind_of(path, kind, folders, channels) for path in found]
    if len(found) > 1 and len(set(kinds)) == 1 and kinds[0] in SHARD_SUFFIXES:
        return [_open_shards([shard for path in found for shard in _shards(path, kinds[0])], kinds[0], channels)]
    return [_open_kind(path, one, channels) for path, one in zip(found, kinds, strict=True)]


def _kind_of(path: str, kind: SourceKind, folders: FolderKind, channels: int) -> SourceKind:
    """The kind of one location. Raises DataError if it is not there, or is not what was asked for."""
    if kind in ("auto", *SHARD_SUFFIXES) and _is_remote_shard(path):
        return _kind_of_file(path, channels) if kind == "auto" else kind
    if not location.exists(path):
        raise DataError(f"there is no image source at '{path}' (looked from {Path.cwd()}){how_to_make(Path(path))}")
    is_folder = location.is_folder(path)
    if kind == "auto":
        return _kind_of_folder(path, folders, channels) if is_folder else _kind_of_file(path, channels)
    if kind == "list" and is_folder:
        raise DataError(f"'{path}' is a folder, but a list file was asked for; use the kind folder or imagefolder")
    if kind in ("folder", "imagefolder") and not is_folder:
        raise DataError(f"'{path}' is a file, but a folder of images was asked for; use the kind list for a list file")
    return kind


def _kind_of_file(path: str, channels: int) -> SourceKind:
    name = path.lower()
    if name.endswith((".tar", *COMPRESSED)):
        return "tar"
    if name.endswith(".parquet"):
        return "parquet"
    if suffix_of(path) in suffixes(channels):
        raise DataError(f"'{path}' is one image; name the folder that it lies in, or a list file that names it")
    return "list"


def _kind_of_folder(path: str, folders: FolderKind, channels: int) -> SourceKind:
    """A folder with any image is one of images, whatever else lies in it."""
    seen: set[SourceKind] = set()
    for name in location.walk(path):
        if suffix_of(name) in suffixes(channels):
            return folders
        seen |= {kind for kind, suffix in SHARD_SUFFIXES.items() if suffix_of(name) == suffix}
    if len(seen) > 1:
        raise DataError(f"'{path}' holds tar and parquet files; say which to use with the kind tar or parquet")
    return seen.pop() if seen else folders


def _open_kind(path: str, kind: SourceKind, channels: int) -> ImageSource:
    if kind in SHARD_SUFFIXES:
        return _open_shards(_shards(path, kind), kind, channels)
    if kind == "list":
        return open_list(path, channels=channels)
    return (open_folder if kind == "folder" else open_imagefolder)(path, channels=channels)


def _open_shards(shards: Sequence[str], kind: SourceKind, channels: int) -> ImageSource:
    return (open_tar if kind == "tar" else open_parquet)(shards, channels=channels)


def _shards(path: str, kind: SourceKind) -> list[str]:
    """The file itself, or the shards below a folder, sorted. Raises DataError if there are none."""
    if _is_remote_shard(path) or not location.is_folder(path):
        return [path]
    suffix = SHARD_SUFFIXES[kind]
    found = [location.join(path, name) for name in location.walk(path) if suffix_of(name) == suffix]
    if not found:
        raise DataError(f"there is no {suffix} file below '{path}'")
    if kind == "parquet":
        check_splits(path, found)
    return found


def _is_remote_shard(path: str) -> bool:
    """By its name: there may be thousands, and asking for each takes long. Whether it is there, opening it tells."""
    return location.is_url(path) and path.endswith(tuple(SHARD_SUFFIXES.values()))


def how_to_make(path: Path) -> str:
    """What to type if the presets' own images are not there yet: they lie at data/NAME/SPLIT."""
    for folder in path.parents:
        if folder.name in PREPARED and path.relative_to(folder).as_posix() in SPLIT_FOLDERS:
            return f"; make it: mcbeit data prepare {folder.name} {folder}"
    return ""
