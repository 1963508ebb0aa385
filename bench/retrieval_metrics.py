"""How good rankings are, query by query, so that means, errors and bootstraps can be made of it.

`hits` says which ranks hold a right image, the nearest first; `num_relevant` how many right images the gallery has.
Ranks beyond the last column count as misses. A query that nothing is right for has no score, NaN: the published code
leaves it out of means.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Hits = Bool[np.ndarray, "query rank"]
NumRelevant = Int[np.ndarray, " query"]
Scores = Float[np.ndarray, " query"]
ScoresAt = Float[np.ndarray, "query count"]


def recall_at(hits: Hits, num_relevant: NumRelevant, counts: Sequence[int]) -> ScoresAt:
    """For each k of `counts`, 1 if any of the k nearest is right, else 0: Recall@k of metric learning."""
    found = np.stack([hits[:, :count].any(axis=1) for count in counts], axis=1)
    return np.where(num_relevant[:, None] > 0, found, np.nan)


def reciprocal_rank(hits: Hits, num_relevant: NumRelevant) -> Scores:
    """1 / the rank of the nearest right image, 0 if none is ranked; its mean is the mean reciprocal rank."""
    found = np.where(hits.any(axis=1), 1 / (1 + hits.argmax(axis=1)), 0.0)
    return np.where(num_relevant > 0, found, np.nan)


def average_precision(hits: Hits, num_relevant: NumRelevant) -> Scores:
    """The precision at the rank of each right image, 0 for one that is not ranked, averaged over all right images."""
    return _share((_precision(hits) * hits).sum(axis=1), num_relevant)


def average_precision_at_r(hits: Hits, num_relevant: NumRelevant) -> Scores:
    """The same of the R nearest alone, for R right images; its mean is MAP@R (Musgrave et al., 2020).

    Raises ValueError if there are fewer than R ranks.
    """
    return average_precision(_nearest_r(hits, num_relevant), num_relevant)


def r_precision(hits: Hits, num_relevant: NumRelevant) -> Scores:
    """The share of right ones among the R nearest, for R right images. Raises ValueError if there are fewer ranks."""
    return _share(_nearest_r(hits, num_relevant).sum(axis=1), num_relevant)


def trapezoidal_average_precision(hits: Hits, num_relevant: NumRelevant) -> Scores:
    """The area under precision over recall by trapezoids: mAP of Oxford and Paris (Radenović et al., 2018).

    Each right image counts with the mean of the precision just before it, which is 1 at the first rank, and at it.
    """
    places = np.arange(hits.shape[1])
    before = (hits.cumsum(axis=1) - 1) / np.maximum(places, 1)
    before[:, :1] = 1.0
    return _share(((before + _precision(hits)) / 2 * hits).sum(axis=1), num_relevant)


def precision_at(hits: Hits, num_relevant: NumRelevant, counts: Sequence[int]) -> ScoresAt:
    """For each k of `counts`, the share of right ones among the k nearest: mP@k of revisited Oxford and Paris.

    Where the last right image comes before k it is the share up to that, as in the evaluation of the paper: few right
    images are no fault.
    """
    ranks = np.arange(1, hits.shape[1] + 1)
    last = np.where(hits.sum(axis=1) < num_relevant, max(counts), (hits * ranks).max(axis=1, initial=1))
    cuts = np.minimum(last[:, None], counts)
    found = np.stack([(hits & (ranks <= cut[:, None])).sum(axis=1) for cut in cuts.T], axis=1)
    return np.where(num_relevant[:, None] > 0, found / cuts, np.nan)


def _precision(hits: Hits) -> Float[np.ndarray, "query rank"]:
    """The share of right ones up to each rank."""
    return hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)


def _nearest_r(hits: Hits, num_relevant: NumRelevant) -> Hits:
    """The hits among as many ranks as there are right images."""
    if num_relevant.max(initial=0) > hits.shape[1]:
        raise ValueError(f"{num_relevant.max()} images are right for a query; {hits.shape[1]} ranks are too few")
    return hits & (np.arange(hits.shape[1]) < num_relevant[:, None])


def _share(sums: Shaped[np.ndarray, " query"], num_relevant: NumRelevant) -> Scores:
    return np.where(num_relevant > 0, sums / np.maximum(num_relevant, 1), np.nan)
