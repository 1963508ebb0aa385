"""Mean intersection over union of a whole data set, from the areas of each image.

Areas are summed over the images before anything is divided: the mean of the images' own scores is another number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer

from mcbeit.segmentation.label_maps import IGNORED

NUM_AREAS = 3  # of a class: where it is rightly found, where it is found, where it is


class Overlap(NamedTuple):
    """The metrics of a data set. Classes that are nowhere, neither found nor there, have no value (nan)."""

    mean_iou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: Float[np.ndarray, " class"]
    accuracy: Float[np.ndarray, " class"]


def areas(
    found: Integer[np.ndarray, "height width"], labels: Integer[np.ndarray, "height width"], num_classes: int
) -> Int64[np.ndarray, "3 class"]:
    """Pixels of an image where each class is rightly found, is found, and is; IGNORED labels count for nothing."""
    counted = labels != IGNORED
    found, labels = found[counted], labels[counted]
    right = labels[found == labels]
    return np.stack([np.bincount(one, minlength=num_classes) for one in (right, found, labels)]).astype(np.int64)


def overlap(total: Int64[np.ndarray, "3 class"]) -> Overlap:
    """The metrics of the areas of all images together."""
    right, found, there = total.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = right / (found + there - right), right / there
    return Overlap(
        mean_iou=_mean(iou),
        pixel_accuracy=float(right.sum() / max(there.sum(), 1)),
        mean_accuracy=_mean(accuracy),
        iou=iou,
        accuracy=accuracy,
    )


def bootstrap_mean_iou(
    each: Int64[np.ndarray, "image 3 class"], *, seed: int, draws: int = 1000
) -> Float[np.ndarray, " draw"]:
    """The mean IoU of data sets of as many images, drawn with replacement."""
    rng, flat = np.random.default_rng(seed), each.reshape(len(each), -1).astype(np.float64)
    found = np.empty(draws)
    for draw in range(draws):
        weights = np.bincount(rng.integers(len(each), size=len(each)), minlength=len(each)).astype(np.float64)
        found[draw] = overlap((weights @ flat).round().astype(np.int64).reshape(NUM_AREAS, -1)).mean_iou
    return found


def _mean(values: Float[np.ndarray, " class"]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0
