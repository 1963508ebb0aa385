"""The same things drawn by several hands: is one found by another's drawing of it.

`val/STYLE/NAME.png` are the queries, all of `train/STYLE/NAME.png` and `val/STYLE/NAME.png` the gallery; images of one
NAME show the same thing. Each pair of styles is a protocol: the queries of the first style, among all images of the
second. `mcbeit data prepare emoji-styles` makes such a folder.
"""

from itertools import permutations
from pathlib import PurePath

import numpy as np

from mcbeit.bench.retrieval_set import Indices, Relevance, RetrievalSet
from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, JoinedSource, location
from mcbeit.sources.files import open_folder

EXPECTED = "train/STYLE/NAME.png and val/STYLE/NAME.png, of two styles or more, where a NAME is the same thing in each"
NOTHING: Indices = np.empty(0, dtype=np.int64)


def open_paired(folder: str, channels: int) -> RetrievalSet:
    """Open such a folder. Raises DataError if it is laid out otherwise."""
    parts = {split: location.join(folder, split) for split in ("train", "val")}
    for split, path in parts.items():
        if not location.is_folder(path):
            raise DataError(f"'{folder}' has no {split}/: expected {EXPECTED}; {location.describe(folder)}")
    queries = open_folder(parts["val"], channels=channels)
    gallery = JoinedSource([open_folder(path, channels=channels) for path in parts.values()])
    asked, searched = _keys(queries), _keys(gallery)
    styles = sorted({style for style, _ in searched})
    if len(styles) < 2:
        raise DataError(f"'{folder}' has the style {', '.join(styles)} alone: expected {EXPECTED}")
    return RetrievalSet(
        queries,
        gallery,
        {f"{one} to {other}": _relevance(asked, searched, one, other) for one, other in permutations(styles, 2)},
        "paired",
    )


def _keys(source: ImageSource) -> list[tuple[str, str]]:
    """The style and the name of each image."""
    paths = [PurePath(source.name(image)) for image in range(len(source))]
    return [(path.parent.name, path.stem) for path in paths]


def _relevance(asked: list[tuple[str, str]], searched: list[tuple[str, str]], one: str, other: str) -> Relevance:
    """For queries of `one`, the image of the same name is right, and all that are not of `other` are junk."""
    place = {name: np.array([image]) for image, (style, name) in enumerate(searched) if style == other}
    junk = np.array([image for image, (style, _) in enumerate(searched) if style != other], dtype=np.int64)
    relevant = [place.get(name, NOTHING) if style == one else NOTHING for style, name in asked]
    return Relevance(relevant, [junk] * len(asked))
