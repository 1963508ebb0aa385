"""From what a person names as `data.source` to a source, checked before work starts.

A further kind of source is one more module with the members of `ImageSource` and one more entry in `_open_one`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mcbeit.errors import DataError
from mcbeit.sources.files import open_folder, open_imagefolder
from mcbeit.sources.joined import JoinedSource
from mcbeit.sources.listfile import open_list
from mcbeit.sources.source import ImageSource

SourceKind = Literal["auto", "folder", "imagefolder", "list"]
PREPARED = ("emoji", "fashion-mnist", "photos")  # of `mcbeit data prepare`


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


def _how_to_make(path: Path) -> str:
    """What to type if the presets' own images are not there yet: they lie at data/NAME/SPLIT."""
    folder = path.parent
    if path.name not in ("train", "val") or folder.name not in PREPARED:
        return ""
    return f"; make it: mcbeit data prepare {folder.name} {folder}"
