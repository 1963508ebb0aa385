"""The images of a benchmark, by the name that results carry: `--data NAME=PATH`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from mcbeit.bench.retrieval_data import RetrievalKind, RetrievalSet, open_retrieval
from mcbeit.bench.shifted_sets import ShiftedSet, open_part, open_shifted
from mcbeit.detection.coco import CocoSplits, open_coco_splits
from mcbeit.errors import ConfigError
from mcbeit.image_files import COLOURS
from mcbeit.probe import pick
from mcbeit.segmentation.scenes import Scenes, open_scenes
from mcbeit.sources import ImageSource, SubsetSource
from mcbeit.sources.imagenet import LayoutKind, Splits, open_splits

DataKind = Literal["labelled", "retrieval", "scenes", "annotated", "shifted"]  # what is known of the images
SPLITS: dict[DataKind, tuple[str, str]] = {  # but of shifted ones, which are no task's own
    "labelled": ("train", "val"),
    "retrieval": ("queries", "gallery"),
    "scenes": ("train", "val"),
    "annotated": ("train", "val"),
}


@dataclass(frozen=True)
class BenchData:
    """Where images lie, and how many of them are used; small, so that it can be sent to workers."""

    name: str
    place: str
    limit: int | None = None  # images of each split, drawn by `seed`
    seed: int = 0
    channels: int = COLOURS
    kind: DataKind = "labelled"  # what a task takes them for

    @classmethod
    def parse(cls, text: str, *, limit: int | None = None, seed: int = 0, channels: int = COLOURS) -> "BenchData":
        """Read NAME=PATH or NAME=KIND:PATH. Raises ConfigError if it is not of that form."""
        name, equals, place = text.partition("=")
        if not (name and equals and place):
            raise ConfigError(
                f"--data '{text}' is not of the form NAME=PATH, for example fashion-mnist=data/fashion-mnist"
            )
        return cls(name, place, limit, seed, channels)

    @property
    def path(self) -> str:
        """The place without the word for its layout."""
        return _split_kind(self.place, (*get_args(LayoutKind), *get_args(RetrievalKind)))[1]

    def taken_for(self, kind: DataKind) -> "BenchData":
        """The same images for a task that knows something else of them; queries and gallery are always whole."""
        return replace(self, kind=kind, limit=None if kind == "retrieval" else self.limit)

    def splits(self) -> Splits:
        """The labelled images to train on and to test on. Raises DataError if there are none."""
        kind, path = _split_kind(self.place, get_args(LayoutKind))
        found = _splits(path, kind, self.channels)
        return found._replace(train=self._some(found.train), val=self._some(found.val))

    def retrieval(self) -> RetrievalSet:
        """Queries and gallery, all of them: a limit would take answers away. Raises DataError if there are none."""
        kind, path = _split_kind(self.place, get_args(RetrievalKind))
        return _retrieval(path, kind, self.channels)

    def scenes(self) -> Scenes:
        """Images with label maps to train on and to test on. Raises DataError if there are none."""
        found = _scenes(self.path)
        return Scenes(*(source.subset(pick(source, self.limit, self.seed)) for source in found))

    def annotated(self) -> CocoSplits:
        """Images with marked objects to train on and to test on. Raises DataError if there are none."""
        found = _annotated(self.path)
        train, val = (one.subset(pick(one, self.limit, self.seed)) for one in (found.train, found.val))
        return CocoSplits(train, val, found.layout)

    def shifted(self) -> ShiftedSet:
        """Other images of known classes, which only `open` limits. Raises DataError if there are none."""
        return _shifted(self.place, self.channels)

    def opened(self) -> Splits | RetrievalSet | Scenes | CocoSplits:
        """The images as its kind has them; not of shifted ones."""
        if self.kind == "retrieval":
            return self.retrieval()
        if self.kind == "labelled":
            return self.splits()
        return self.scenes() if self.kind == "scenes" else self.annotated()

    def open(self, split: str) -> ImageSource:
        """The images of a split, or of a part of a shifted set."""
        if self.kind == "shifted":
            return self._some(_part(self.place, split, self.channels))
        return getattr(self.opened(), split)

    @property
    def layout(self) -> str:
        """How the images lie on the disk."""
        return self.opened().layout

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of classes, by number; none where images are retrieved."""
        return () if self.kind == "retrieval" else tuple(self.open("train").classes)

    def _some(self, source: ImageSource) -> ImageSource:
        chosen = pick(source, self.limit, self.seed)
        return source if len(chosen) == len(source) else SubsetSource(source, chosen)


NOTHING = BenchData("", "")  # for a model that is not asked about images yet


def forget_opened() -> None:
    """Look at the disk again when images are asked for next."""
    for opened in (_splits, _retrieval, _scenes, _annotated, _shifted, _part):
        opened.cache_clear()


def _split_kind(place: str, kinds: Sequence[str]) -> tuple[Any, str]:
    """KIND:PATH, or a path whose layout is found out."""
    kind, colon, path = place.partition(":")
    return (kind, path) if colon and kind in kinds else ("auto", place)


@lru_cache(maxsize=4)
def _splits(path: str, kind: LayoutKind, channels: int) -> Splits:
    return open_splits(path, kind=kind, channels=channels)


@lru_cache(maxsize=4)
def _retrieval(path: str, kind: RetrievalKind, channels: int) -> RetrievalSet:
    return open_retrieval(path, kind=kind, channels=channels)


@lru_cache(maxsize=4)
def _scenes(path: str) -> Scenes:
    return open_scenes(path)


@lru_cache(maxsize=4)
def _annotated(path: str) -> CocoSplits:
    return open_coco_splits(path)


@lru_cache(maxsize=8)
def _shifted(path: str, channels: int) -> ShiftedSet:
    return open_shifted(path, channels=channels)


@lru_cache(maxsize=4)
def _part(path: str, part: str, channels: int) -> ImageSource:
    return open_part(path, part, channels=channels)
