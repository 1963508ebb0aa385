"""The vote of the nearest neighbours: each counts for its class by exp(score / temperature) (Wu et al., 2018)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

QUERIES_AT_ONCE = 4096


class Votes(NamedTuple):
    """What came out, for every number of neighbours and every temperature."""

    predicted: Int64[np.ndarray, "k temperature query"]  # the class with the most votes; of equal ones the first
    top1: Bool[np.ndarray, "k temperature query"]  # whether that is the truth
    top5: Bool[np.ndarray, "k temperature query"]  # whether the truth is among the five with the most votes


def vote(
    scores: Float32[np.ndarray, "query neighbour"],
    labels: Int64[np.ndarray, "query neighbour"],
    truth: Int64[np.ndarray, " query"],
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
) -> Votes:
    """Count the votes of the first k neighbours, for all `ks` and `temperatures` in one pass.

    Neighbours are ordered, the nearest first. Raises ValueError for a k that is more than there are.
    """
    if max(ks) > scores.shape[1]:
        raise ValueError(f"k={max(ks)}, but there are only {scores.shape[1]} neighbours")
    shape = (len(ks), len(temperatures), len(scores))
    found = Votes(np.empty(shape, np.int64), np.empty(shape, bool), np.empty(shape, bool))
    for start in range(0, len(scores), QUERIES_AT_ONCE):
        some = slice(start, start + QUERIES_AT_ONCE)
        for j, temperature in enumerate(temperatures):
            weights = np.exp((scores[some] - scores[some, :1]).astype(np.float64) / temperature)
            for i, k in enumerate(ks):
                counts = _count(weights[:, :k], labels[some, :k], num_classes)
                found.predicted[i, j, some] = counts.argmax(axis=1)
                found.top5[i, j, some] = _rank(counts, truth[some]) < 5
        found.top1[:, :, some] = found.predicted[:, :, some] == truth[some]
    return found


def _count(weights: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The votes for each class, [query, class]."""
    cells = np.arange(len(labels))[:, None] * num_classes + labels
    votes = np.bincount(cells.ravel(), weights=weights.ravel(), minlength=len(labels) * num_classes)
    return votes.reshape(len(labels), num_classes)


def _rank(counts: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many classes stand before the true one: those with more votes, and earlier ones with as many.

    A class without any vote was not found, whatever its number: it stands behind all.
    """
    own = counts[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(counts.shape[1]) < truth[:, None]
    return np.where(own[:, 0] > 0, ((counts > own) | ((counts == own) & earlier)).sum(axis=1), counts.shape[1])
