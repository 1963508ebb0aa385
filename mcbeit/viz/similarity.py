"""How alike one patch is to every patch, of its own image and of others: the cosine of their features."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import unit_length
from mcbeit.errors import PictureError

LOWEST = 2.0  # percentile of all similarities that the colours begin at


class Patch(NamedTuple):
    """A place in the patch grid."""

    row: int
    column: int


class SimilarityMap(NamedTuple):
    """The similarity of one patch, of the first image, to all patches."""

    patch: Patch
    values: Float32[np.ndarray, "image row column"]
    best: list[Patch]  # of each image the patch that is most like it; of the first, beside itself
    low: float  # what the colours begin and end with, the same for all images
    high: float


def parse_place(text: str) -> tuple[float, float]:
    """`X,Y`, fractions of the image from the left and from the top. Raises PictureError."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = np.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise PictureError(f"'{text}' is no place in an image; give X,Y as fractions, such as 0.5,0.25 (0,0: top left)")
    return x, y


def patch_at(place: tuple[float, float], grid: tuple[int, int]) -> Patch:
    """The patch that a place lies in; `grid` is rows and columns."""
    (x, y), (rows, columns) = place, grid
    return Patch(min(int(y * rows), rows - 1), min(int(x * columns), columns - 1))


def similarity_map(features: Float32[np.ndarray, "image row column dim"], patch: Patch) -> SimilarityMap:
    """The cosine of a patch of the first image with every patch."""
    directions = unit_length(features)
    values = directions @ directions[0, patch.row, patch.column]
    others = values.copy()
    others[0, patch.row, patch.column] = -np.inf
    columns = features.shape[2]
    best = [Patch(*divmod(int(one.argmax()), columns)) for one in others]
    finite = others[np.isfinite(others)] if others.size > 1 else values.ravel()
    return SimilarityMap(patch, values, best, float(np.percentile(finite, LOWEST)), float(finite.max()))
