"""Which images are searched for, among which, what is right for each, and how a ranking is judged by that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mcbeit.sources import ImageSource

Indices = Int[np.ndarray, " _"]  # of gallery images, each once


@dataclass(frozen=True)
class Relevance:
    """For every query the images that are right, and those that are junk: taken out of a ranking before it is judged.

    What is both is junk. Queries may share arrays, so there may be one per class.
    """

    relevant: Sequence[Indices]
    junk: Sequence[Indices]

    @cached_property
    def num_relevant(self) -> Int[np.ndarray, " query"]:
        """How many images each query should find."""
        pairs = zip(self.relevant, self.junk, strict=True)
        return np.array([len(right) - np.isin(junk, right).sum() for right, junk in pairs], dtype=np.int64)


@dataclass(frozen=True)
class RetrievalSet:
    """Two sources, which are one object where every image is searched for among all others."""

    queries: ImageSource
    gallery: ImageSource
    relevance: Mapping[str, Relevance]  # by protocol
    layout: str


class Ranked(NamedTuple):
    """Which ranks hold a right image, the nearest first, without junk; and how many right ones there are in all."""

    hits: Bool[np.ndarray, "query rank"]
    num_relevant: Int[np.ndarray, " query"]


def by_class(queries: ImageSource, gallery: ImageSource) -> Relevance:
    """Right is what has a class of the same name. In one and the same source each image is junk for itself.

    Both sources have labels.
    """
    assert queries.labels is not None
    assert gallery.labels is not None
    nothing = np.empty(0, dtype=np.int64)
    ends = np.cumsum(np.bincount(gallery.labels, minlength=len(gallery.classes)))
    members = np.split(np.argsort(gallery.labels, kind="stable"), ends[:-1])
    of_class = dict(zip(gallery.classes, members, strict=True))
    relevant = [of_class.get(queries.classes[label], nothing) for label in queries.labels]
    junk = np.arange(len(queries))[:, None] if queries is gallery else [nothing] * len(queries)
    return Relevance(relevant, list(junk))


def judge(ranking: Int[np.ndarray, "query rank"], relevance: Relevance, num_searched: int) -> Ranked:
    """Tell right from wrong in the nearest gallery images of every query.

    `num_searched` is how many images there were to find. A ranking of all of them is judged to its end, a shorter one
    as far as every query has ranks left when its junk is out: ask for as many more neighbours as a query has junk.
    """
    is_junk = np.stack([np.isin(row, junk) for row, junk in zip(ranking, relevance.junk, strict=True)])
    is_right = np.stack([np.isin(row, right) for row, right in zip(ranking, relevance.relevant, strict=True)])
    junk_last = np.argsort(is_junk, axis=1, kind="stable")
    hits, num_relevant = np.take_along_axis(is_right & ~is_junk, junk_last, axis=1), relevance.num_relevant
    depth = ranking.shape[1]
    if depth < num_searched:
        return Ranked(hits[:, : depth - is_junk.sum(axis=1).max()], num_relevant)
    unsearched = max(int(num_relevant.max()) - depth, 0)  # right images that could not be read: misses at the end
    return Ranked(np.pad(hits, ((0, 0), (0, unsearched))), num_relevant)
