"""The weighted vote of the nearest neighbours, for several numbers of them and several temperatures at once.

The protocol of DINO (Caron et al., 2021, after Wu et al., 2018): of the k neighbours with the largest cosine each adds
exp(cosine / temperature) to its class, and classes are ranked by their sums.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64

from mcbeit.errors import BenchError

TOP = 5
BLOCK_BYTES = 32 * 2**20  # of the sums of the queries that vote together


class Votes(NamedTuple):
    """What each number of neighbours and each temperature makes of each query."""

    predicted: Int64[np.ndarray, "k temperature query"]  # the class with the largest sum
    top1: Bool[np.ndarray, "k temperature query"]  # whether it is the true one
    top5: Bool[np.ndarray, "k temperature query"]  # whether the true one is among the five with the largest sums


def vote(
    neighbour_scores: Float[np.ndarray, "query neighbour"],
    neighbour_labels: Int[np.ndarray, "query neighbour"],
    truth: Int[np.ndarray, " query"],
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
) -> Votes:
    """Classify queries by their neighbours, the nearest first.

    Of classes with equal sums, such as those without a neighbour, the first goes before. Raises BenchError if there
    are fewer neighbours than a k, if a temperature is not positive, and if a label is not one of the classes.
    """
    _check(neighbour_labels, truth, ks, temperatures, num_classes)
    shape = len(ks), len(temperatures), len(truth)
    votes = Votes(np.empty(shape, np.int64), np.empty(shape, bool), np.empty(shape, bool))
    block = max(1, BLOCK_BYTES // (8 * num_classes))
    for start in range(0, len(truth), block):
        rows = slice(start, start + block)
        # all sums of a query are divided by the weight of its nearest neighbour, so that none overflows
        distance = neighbour_scores[rows].astype(np.float64) - neighbour_scores[rows, :1]
        for column, temperature in enumerate(temperatures):
            weights = np.exp(distance / temperature)
            for k, sums in _growing_sums(weights, neighbour_labels[rows], ks, num_classes):
                rank = _rank(sums, truth[rows])
                votes.predicted[k, column, rows] = sums.argmax(axis=1)
                votes.top1[k, column, rows], votes.top5[k, column, rows] = rank < 1, rank < TOP
    return votes


def _growing_sums(
    weights: Float64[np.ndarray, "query neighbour"],
    labels: Int[np.ndarray, "query neighbour"],
    ks: Sequence[int],
    num_classes: int,
) -> Iterator[tuple[int, Float64[np.ndarray, "query class"]]]:
    """The place of each k in `ks`, from the least k on, and the sums of the classes up to there."""
    sums = np.zeros((len(weights), num_classes))
    places = labels + num_classes * np.arange(len(weights))[:, None]
    done = 0
    for place in np.argsort(ks):
        new = slice(done, ks[place])
        sums += np.bincount(places[:, new].ravel(), weights[:, new].ravel(), minlength=sums.size).reshape(sums.shape)
        yield int(place), sums
        done = ks[place]


def _rank(sums: Float64[np.ndarray, "query class"], truth: Int[np.ndarray, " query"]) -> Int64[np.ndarray, " query"]:
    """How many classes are before the true one."""
    own = np.take_along_axis(sums, truth[:, None], axis=1)
    is_first = np.arange(sums.shape[1]) < truth[:, None]
    return ((sums > own) | ((sums == own) & is_first)).sum(axis=1)


def _check(
    labels: Int[np.ndarray, "query neighbour"],
    truth: Int[np.ndarray, " query"],
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
) -> None:
    if wrong := [k for k in ks if not 1 <= k <= labels.shape[1]]:
        raise BenchError(f"k={wrong[0]} neighbours cannot vote where there are {labels.shape[1]}; find more first")
    if cold := [temperature for temperature in temperatures if not temperature > 0]:
        raise BenchError(f"temperature={cold[0]:g} is not positive; DINO uses 0.07")
    for name, found in (("neighbours", labels), ("queries", truth)):
        if found.size and not 0 <= found.min() <= found.max() < num_classes:
            raise BenchError(f"labels of {name} lie in {found.min()} to {found.max()}, not 0 to {num_classes - 1}")
