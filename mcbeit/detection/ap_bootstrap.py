"""How much an average precision depends on which test images were drawn.

Detections are matched with what is marked once; a draw then counts each image as often as it was drawn. The number is
the one that COCO's tools give for a set with those images in it, as copies of a detection have the same score; where
detections of several images share one, they stay in the order of the images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision


class Matches(NamedTuple):
    """The detections of a class, from the surest to the least sure. What matched a crowd is neither right nor wrong."""

    right: Bool[np.ndarray, "overlap detection"]
    wrong: Bool[np.ndarray, "overlap detection"]
    image: Int64[np.ndarray, " detection"]  # that it is in
    wanted: Int64[np.ndarray, " image"]  # objects of the class to be found


def drawn_aps(classes: Sequence[Matches], num_images: int, *, seed: int, draws: int) -> Float[np.ndarray, " draw"]:
    """The mean AP of the classes for sets of as many images, drawn with replacement; nan where one has no object."""
    rng, found = np.random.default_rng(seed), np.empty(draws)
    for draw in range(draws):
        counts = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        precisions = [precision_at_recalls(one, counts) for one in classes if one.wanted @ counts]
        found[draw] = np.mean(precisions) if precisions else np.nan
    return found


def precision_at_recalls(matches: Matches, counts: Int64[np.ndarray, " image"]) -> Float[np.ndarray, "overlap recall"]:
    """The best precision at RECALLS or beyond, with each image counted so often; 0 at recalls that are not reached."""
    times = counts[matches.image]
    right, wrong = (np.cumsum(one * times, axis=1) for one in (matches.right, matches.wrong))
    recall = right / (matches.wanted @ counts)
    precision = right / np.maximum(right + wrong, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    beyond = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    return np.stack([row[np.searchsorted(reached, RECALLS)] for row, reached in zip(beyond, recall, strict=True)])
