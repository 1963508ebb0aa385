"""Does a graph give the numbers of the model? Compared on real images, at several batch sizes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mcbeit.encoder import Precision, unit_length
from mcbeit.model_folder import Comparison

BATCH_SIZES = (1, 3, 8)
MIN_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.999}
MIN_RECALL: dict[Precision, float] = {"int8": 0.97}
NEIGHBOURS = 10
MIN_FOR_RECALL = 4 * NEIGHBOURS  # of fewer images the ten nearest are no news


class Numbers(NamedTuple):
    """What an encoder says of some images."""

    embeddings: Float[np.ndarray, "image dim"]
    patches: Float[np.ndarray, "image height width patch_dim"]


Compute = Callable[[np.ndarray], Numbers]  # of one batch of pixels


def compute_all(compute: Compute, pixels: np.ndarray, batch_size: int) -> Numbers:
    """What a graph says of all images, some at a time."""
    parts = [compute(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    return Numbers(*(np.concatenate(numbers) for numbers in zip(*parts, strict=True)))


def compare(wanted: Numbers, found: Numbers, batch_size: int) -> Comparison:
    """How far `found` is from `wanted`."""
    cosines = cosine(wanted.embeddings, found.embeddings)
    count = len(cosines)
    return Comparison(
        batch_size=batch_size,
        num_images=count,
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        min_patch_cosine=float(cosine(wanted.patches, found.patches).min()),
        max_difference=float(np.nan_to_num(np.abs(wanted.embeddings - found.embeddings), nan=np.inf).max()),
        recall_at_10=recall(wanted.embeddings, found.embeddings) if count >= MIN_FOR_RECALL else None,
    )


def measure(wanted: Numbers, compute: Compute, pixels: np.ndarray) -> list[Comparison]:
    """The comparison at each of BATCH_SIZES."""
    return [compare(wanted, compute_all(compute, pixels, size), size) for size in BATCH_SIZES]


def failures(comparisons: Sequence[Comparison], precision: Precision) -> list[str]:
    """What does not meet the demands of a precision, in words."""
    least, found = MIN_COSINE[precision], []
    for one in comparisons:
        if not one.min_cosine >= least:
            found.append(
                f"minimum cosine {one.min_cosine:.6f} at batch size {one.batch_size}, at least {least} is wanted"
            )
        wanted = MIN_RECALL.get(precision)
        if wanted is not None and one.recall_at_10 is not None and not one.recall_at_10 >= wanted:
            found.append(
                f"{one.recall_at_10:.3f} of the ten nearest neighbours stay at batch size {one.batch_size}, at "
                f"least {wanted} is wanted"
            )
    return found


def cosine(one: Float[np.ndarray, "*batch dim"], other: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch"]:
    """The cosine of each pair of vectors, in float64; 1 where both are zero, -1 where it is no number."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    is_zero = ~one.any(axis=-1) & ~other.any(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(np.where(is_zero, 1.0, (one * other).sum(axis=-1) / lengths), nan=-1.0)


def recall(one: Float[np.ndarray, "image dim"], other: Float[np.ndarray, "image dim"]) -> float:
    """The share of each image's ten nearest neighbours among the others that are the same by both embeddings."""
    pairs = zip(_neighbours(one), _neighbours(other), strict=True)
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs]))


def _neighbours(vectors: Float[np.ndarray, "image dim"]) -> Int[np.ndarray, "image neighbour"]:
    vectors = unit_length(vectors.astype(np.float32))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEIGHBOURS]
