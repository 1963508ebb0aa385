"""What is done to vectors before they are compared or classified, by the statistics of those that are trained on."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import unit_length
from mcbeit.whitening import Moments

Scaling = Literal["none", "centre", "standardise", "whiten"]
MIN_DEVIATION = 1e-6
Vectors = Float32[np.ndarray, "_ dim"]


class LinearMap(NamedTuple):
    """`(vectors - mean) @ matrix`; a matrix of one row stands for its diagonal."""

    mean: Float32[np.ndarray, " dim"]
    matrix: Float32[np.ndarray, "rows out"]

    def __call__(self, vectors: Vectors) -> Vectors:
        """Apply it."""
        less = vectors - self.mean
        return less * self.matrix if len(self.matrix) == 1 else less @ self.matrix

    def square(self) -> Float32[np.ndarray, "dim out"]:
        """The matrix as a matrix."""
        return np.diag(self.matrix[0]) if len(self.matrix) == 1 else self.matrix


def fit_scaling(train: Vectors, scaling: Scaling) -> LinearMap:
    """Learn it. Raises EncoderError if there are too few vectors to whiten."""
    dim = train.shape[1]
    if scaling == "whiten":
        moments = Moments(dim)
        moments.add(np.asarray(train))
        found = moments.whitening(fingerprint="")
        return LinearMap(found.mean, found.matrix)
    mean = np.zeros(dim, np.float32) if scaling == "none" else train.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = np.ones(dim, np.float32)
    if scaling == "standardise":
        deviation = np.maximum(train.std(axis=0, dtype=np.float64), MIN_DEVIATION).astype(np.float32)
    return LinearMap(mean, (1 / deviation)[None])


def scaled(train: Vectors, test: Vectors, scaling: Scaling, *, unit: bool) -> tuple[Vectors, Vectors]:
    """Both sets, scaled by what the first says, then made unit vectors if that is wanted."""
    if scaling != "none":
        change = fit_scaling(train, scaling)
        train, test = change(train), change(test)
    return (unit_length(train), unit_length(test)) if unit else (train, test)
