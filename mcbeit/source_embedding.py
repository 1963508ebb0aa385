"""Embedding every image of a source: files are read and decoded by several processes, vectors computed in this one."""

from functools import partial

import numpy as np

from mcbeit.data import DataConfig
from mcbeit.embeddings import Embeddings
from mcbeit.encoder import BATCH_SIZE, PixelEncoder
from mcbeit.errors import DataError, ImageError
from mcbeit.preprocess import Preprocess
from mcbeit.scan import scan
from mcbeit.sources import ImageSource


def embed_source(encoder: PixelEncoder, config: DataConfig) -> tuple[Embeddings, list[str]]:
    """The embeddings of a source by the names of its images, and a line about each image that cannot be read.

    Raises DataError if these are more than `max_corrupt_fraction` of the source.
    """
    source = config.open()
    names: list[str] = []
    labels: list[int] = []
    found: list[np.ndarray] = []
    unread: list[str] = []
    waiting: list[np.ndarray] = []
    measure = partial(look_at_pixels, preprocess=encoder.spec.preprocess)
    for index, seen in enumerate(scan(source, np.arange(len(source)), measure, config, title="embed")):
        if isinstance(seen, str):
            unread.append(f"{source.name(index)}: {seen}")
            continue
        names.append(source.name(index))
        if source.labels is not None:
            labels.append(int(source.labels[index]))
        waiting.append(seen)
        if len(waiting) == BATCH_SIZE:
            found.append(encoder.embed_pixels(np.stack(waiting)))
            waiting.clear()
    if waiting:
        found.append(encoder.embed_pixels(np.stack(waiting)))
    if len(unread) > config.max_corrupt_fraction * len(source):
        raise DataError(
            f"{len(unread)} of {len(source)} images cannot be read, more than "
            f"data.max_corrupt_fraction={config.max_corrupt_fraction:g} allows; the first is {unread[0]}"
        )
    vectors = np.concatenate(found) if found else np.zeros((0, encoder.spec.dim), np.float32)
    if source.labels is None:
        return Embeddings(names, names, vectors, encoder.spec), unread
    return Embeddings(names, names, vectors, encoder.spec, np.array(labels, np.int64), source.classes), unread


def look_at_pixels(source: ImageSource, index: int, *, preprocess: Preprocess) -> np.ndarray | str:
    """The pixels that the model sees of one image, or why there are none."""
    try:
        return preprocess.pixels(source.read(index))
    except (ImageError, OSError) as error:
        return " ".join(str(error).split())
