"""Images with label maps on the disk: ADE20K's layout, and pairs of folders of a user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mcbeit.errors import DataError, ImageError
from mcbeit.segmentation.label_maps import IGNORED, read_label_map
from mcbeit.sources import location
from mcbeit.sources.files import FileSource, suffix_of
from mcbeit.sources.source import SUFFIXES

CLASSES_FILE = "classes.txt"
ADE20K_CLASSES = "objectInfo150.txt"
SPLITS = {"train": ("training", "train"), "val": ("validation", "val")}  # names of the folders of a split
MAPS = ("annotations", "masks", "labels")  # names of the folder of label maps, beside `images`
MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
NUM_LOOKED_AT = 32  # label maps that are decoded before anything else: a wrong set shows at once
EXPECTED = (
    "images/{training,validation} and annotations/{training,validation} with objectInfo150.txt, as ADE20K has them, or "
    "images/{train,val} and masks/{train,val} with classes.txt, a class per line"
)


class SceneSource(FileSource):
    """Images below one folder, each with a label map of the same stem below another."""

    def __init__(self, root: Path, maps: Path, pairs: Sequence[tuple[str, str]], layout: "Layout") -> None:
        super().__init__(root, [image for image, _ in pairs], classes=layout.classes)
        self.maps, self.layout = maps, layout
        self._map_names = [name for _, name in pairs]

    @property
    def num_classes(self) -> int:
        """Without the one that is ignored."""
        return len(self.classes)

    def map_path(self, index: int) -> Path:
        """The file of a label map."""
        return self.maps / self._map_names[index]

    def annotation(self, index: int) -> bytes:
        """The encoded label map."""
        return self.map_path(index).read_bytes()

    def labels_of(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """The class of every pixel, IGNORED where there is none. Raises ImageError or OSError if it is unusable."""
        return read_label_map(
            self.annotation(index), num_classes=self.num_classes, zero_is_ignored=self.layout.zero_is_ignored
        )

    def subset(self, indices: Sequence[int] | np.ndarray) -> "SceneSource":
        """Some of the scenes, in the order given; itself if those are all."""
        if list(indices) == list(range(len(self))):
            return self
        pairs = [(self._paths[int(i)], self._map_names[int(i)]) for i in indices]
        return SceneSource(Path(self.root), self.maps, pairs, self.layout)

    def summary(self) -> dict[str, Any]:
        """See `ImageSource`."""
        return {**super().summary(), "classes": self.classes}


class Layout(NamedTuple):
    """How a set of scenes lies on the disk."""

    name: str
    root: Path
    maps: str  # the folder of label maps
    classes: tuple[str, ...]
    zero_is_ignored: bool


class Scenes(NamedTuple):
    """What is learned from, and what is tested on."""

    train: SceneSource
    val: SceneSource

    @property
    def layout(self) -> str:
        """How they lie on the disk."""
        return self.train.layout.name


def open_scenes(path: str | Path) -> Scenes:
    """Open a folder of images and label maps. Raises DataError that says what was expected and what was found."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"'{path}' is {'a file' if root.exists() else 'not there'}; expected a folder with {EXPECTED}")
    layout = _layout(root)
    sources = Scenes(*(_open_split(layout, split) for split in SPLITS))
    for source in sources:
        _look_at(source)
    return sources


def _layout(root: Path) -> Layout:
    maps = next((name for name in MAPS if (root / name).is_dir()), None)
    if maps is None or not (root / "images").is_dir():
        raise DataError(f"'{root}' is not laid out as images with label maps: {_found(root)}; expected {EXPECTED}")
    if (root / ADE20K_CLASSES).is_file():
        return Layout("ade20k", root, maps, _ade20k_classes(root / ADE20K_CLASSES), zero_is_ignored=True)
    if (root / CLASSES_FILE).is_file():
        classes = tuple(_lines(root / CLASSES_FILE))
        _check_classes(classes, root / CLASSES_FILE)
        return Layout("folders", root, maps, classes, zero_is_ignored=False)
    raise DataError(
        f"'{root}' has no list of classes: neither {ADE20K_CLASSES} (label maps count from 1, 0 is ignored) nor "
        f"{CLASSES_FILE} (a class per line; label maps count from 0, {IGNORED} is ignored). Add one of them"
    )


def _ade20k_classes(file: Path) -> tuple[str, ...]:
    """The names of the last column, in the order of the first."""
    header, *lines = _lines(file) or [""]
    rows = [line.split("\t") for line in lines]
    numbers = [row[0].strip() for row in rows]
    if numbers != [str(i + 1) for i in range(len(rows))]:
        raise DataError(
            f"'{file}' must number the classes from 1 in its first column, below a header; it has '{header[:40]}' and "
            f"{', '.join(numbers[:4])}, ..."
        )
    names = tuple(row[-1].strip() for row in rows)
    _check_classes(names, file)
    return names


def _lines(file: Path) -> list[str]:
    """The lines of a text file that hold something. Raises DataError if it cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of classes '{file}' cannot be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _check_classes(classes: Sequence[str], file: Path) -> None:
    if not 2 <= len(classes) <= IGNORED:
        raise DataError(f"'{file}' names {len(classes)} classes; there must be 2 to {IGNORED}")


def _open_split(layout: Layout, split: str) -> SceneSource:
    """The pairs of a split. Raises DataError if a folder or a label map is missing."""
    images, maps = (_folder(layout, kind, split) for kind in ("images", layout.maps))
    by_stem = {_stem(name): name for name in location.walk(str(maps)) if suffix_of(name) in MAP_SUFFIXES}
    names = sorted(name for name in location.walk(str(images)) if suffix_of(name) in SUFFIXES)
    if not names:
        raise DataError(f"'{images}' holds no images; expected {EXPECTED}")
    if missing := [name for name in names if _stem(name) not in by_stem]:
        raise DataError(
            f"{len(missing)} of the {len(names)} images in '{images}' have no label map in '{maps}', such as "
            f"'{missing[0]}', for which '{_stem(missing[0])}.png' was looked for"
        )
    return SceneSource(images, maps, [(name, by_stem[_stem(name)]) for name in names], layout)


def _folder(layout: Layout, kind: str, split: str) -> Path:
    parent = layout.root / kind
    for name in SPLITS[split]:
        if (parent / name).is_dir():
            return parent / name
    raise DataError(f"'{parent}' has no folder {' or '.join(SPLITS[split])}: {_found(parent)}; expected {EXPECTED}")


def _look_at(source: SceneSource) -> None:
    """Raise DataError if one of some label maps, evenly spread, cannot be used."""
    for index in np.unique(np.linspace(0, len(source) - 1, num=min(NUM_LOOKED_AT, len(source))).round().astype(int)):
        try:
            source.labels_of(int(index))
        except (ImageError, OSError) as error:
            raise DataError(f"'{source.name(int(index))}': {error} ({source.map_path(int(index))})") from error


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _found(folder: Path) -> str:
    return location.describe(str(folder))
