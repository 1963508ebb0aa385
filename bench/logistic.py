"""Multinomial logistic regression on fixed features, for many strengths of the L2 penalty together.

The objective is that of scikit-learn's LogisticRegression, C sum_i CE_i + |W|^2 / 2 without the intercepts, divided by
C n; of two classes it penalises the difference of their weights, which is |W|^2 here. L-BFGS (`lbfgs.py`) minimises it
from the frequencies of the classes on, in the principal axes of the features: there the curvature at the start is
known, p (1 - p) times the variance along the axis plus 1 / (C n), and given to it, which spares most of the iterations
that features of unlike variances cost.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from mcbeit.bench.lbfgs import Minima, Points, Values, minimise
from mcbeit.errors import BenchError
from mcbeit.whitening import Moments

CHUNK_BYTES = 32 * 2**20  # of the features, and of the logits, of the images that are computed at once
CHUNK_BYTES_ON_GPU = 2**30
STATE_BYTES = 4 * 2**30  # of what L-BFGS keeps of the strengths that are fitted together
COPIES = 30  # of the weights that it keeps


class Logistic(NamedTuple):
    """Fitted classifiers, one per strength. A class without training images has the intercept -inf."""

    weights: Float[Tensor, "strength class dim_and_intercept"]  # the intercept last
    converged: Bool[np.ndarray, " strength"]
    iterations: Int64[np.ndarray, " strength"]

    def only(self, place: int) -> "Logistic":
        """The classifier of one strength."""
        kept = slice(place, place + 1)
        return Logistic(self.weights[kept], self.converged[kept], self.iterations[kept])

    def among(self, classes: Int64[np.ndarray, " some"]) -> "Logistic":
        """The classifiers of some classes, which they number as they stand there."""
        return self._replace(weights=self.weights[:, classes])

    def predict(self, features: Float[np.ndarray | Tensor, "image dim"]) -> Int64[np.ndarray, "strength image"]:
        """The class with the largest logit."""
        return np.concatenate([logits.argmax(dim=2).T.cpu().numpy() for logits in self._logits(features)], axis=1)

    def scores(self, features: Float[np.ndarray | Tensor, "image dim"]) -> Float[np.ndarray, "strength image class"]:
        """All logits: a number per strength, image and class, of which `predict` holds only a chunk."""
        return np.concatenate([logits.transpose(0, 1).cpu().numpy() for logits in self._logits(features)], axis=1)

    def _logits(self, features: np.ndarray | Tensor) -> Iterator[Float[Tensor, "chunk strength class"]]:
        weights, intercepts = self.weights[..., :-1], self.weights[..., -1]
        return (_logits(chunk, weights, intercepts) for _, chunk in _chunks(features, intercepts))


def fit_logistic(
    features: Float[np.ndarray | Tensor, "image dim"],
    labels: Int[np.ndarray, " image"],
    num_classes: int,
    strengths: Sequence[float],
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-10,
    dtype: Literal["float32", "float64"] = "float64",
    device: torch.device | None = None,
) -> Logistic:
    """Fit a classifier for each strength, scikit-learn's C: the larger, the weaker the penalty.

    A fit has converged when it is expected to lower its objective by no more than `tolerance` times what it has lowered
    it so far. Features may be mapped from a file; they are read in chunks. The device is CUDA if there is one. Raises
    BenchError if a strength is not positive, if labels are no classes or all the same, or if features are not finite.
    """
    _check(labels, num_classes, strengths)
    classes, labels_of_classes = np.unique(labels, return_inverse=True)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective = _Objective(features, labels_of_classes, getattr(torch, dtype), device)
    weight = (2 if len(classes) == 2 else 1) / len(labels)
    penalties = torch.tensor([weight / strength for strength in strengths], dtype=torch.float64)
    parts = [
        objective.minimise(some, tolerance=tolerance, max_iterations=max_iterations)
        for some in penalties.split(objective.num_together)
    ]
    weights = torch.zeros(len(strengths), num_classes, features.shape[1] + 1, dtype=objective.dtype, device=device)
    weights[..., -1] = -torch.inf
    weights[:, classes] = torch.cat([objective.weights(part.points) for part in parts])
    converged, iterations = (
        torch.cat(found).cpu().numpy() for found in zip(*(part[1:] for part in parts), strict=True)
    )
    return Logistic(weights, converged, iterations)


def _check(labels: Int[np.ndarray, " image"], num_classes: int, strengths: Sequence[float]) -> None:
    if weak := [strength for strength in strengths if not strength > 0]:
        raise BenchError(f"the strength C={weak[0]:g} is not positive")
    if len(np.unique(labels)) < 2:
        raise BenchError(f"the labels of {len(labels)} images name less than two classes: nothing to tell apart")
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise BenchError(f"labels lie in {labels.min()} to {labels.max()}, not in 0 to {num_classes - 1}")


class _Objective:
    """What is minimised. A point holds weights along the principal axes, and intercepts at the mean of the features."""

    def __init__(
        self,
        features: Float[np.ndarray | Tensor, "image dim"],
        labels: Int[np.ndarray, " image"],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.features, self.labels, self.dtype = features, torch.from_numpy(labels).to(device), dtype
        mean, variances, axes = _principal_axes(features)
        self.mean, self.axes = torch.from_numpy(mean).to(device, dtype), torch.from_numpy(axes).to(device, dtype)
        self.variances = torch.from_numpy(variances).to(device)
        self.frequencies = torch.bincount(self.labels).double() / len(labels)

    @property
    def num_together(self) -> int:
        """How many strengths may be fitted at once."""
        numbers = len(self.frequencies) * (len(self.mean) + 1) * COPIES
        return max(1, STATE_BYTES // (numbers * self.dtype.itemsize))

    def minimise(self, penalties: Values, *, tolerance: float, max_iterations: int) -> Minima:
        """The best points for some penalties, from the frequencies of the classes on."""
        penalties = penalties.to(self.mean.device)
        start = penalties.new_zeros(len(penalties), len(self.frequencies), len(self.mean) + 1)
        start[..., -1] = self.frequencies.log()
        curvature = torch.empty_like(start)
        spread = self.frequencies * (1 - self.frequencies)
        curvature[..., :-1] = spread[:, None] * self.variances + penalties[:, None, None]
        curvature[..., -1] = spread
        return minimise(
            lambda points, which: self(points, penalties[which]),
            start.flatten(1).to(self.mean),
            (1 / curvature).flatten(1).to(self.mean),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    def weights(self, points: Points) -> Float[Tensor, "problem class dim_and_intercept"]:
        """The weights of the features themselves, and the intercepts; less their mean, which changes no probability."""
        weights, intercepts = self._plain(points)
        both = torch.cat([weights, intercepts[..., None]], dim=2)
        return both - both.mean(dim=1, keepdim=True)

    def __call__(self, points: Points, penalties: Values) -> tuple[Values, Points]:
        """The values at some points and the gradients."""
        weights, intercepts = self._plain(points)
        losses = torch.zeros_like(penalties)
        pull, push = torch.zeros_like(weights), torch.zeros_like(intercepts)  # of the features, of the intercepts
        for rows, chunk in _chunks(self.features, intercepts):
            loss, errors = _cross_entropy(_logits(chunk, weights, intercepts), self.labels[rows])
            losses += loss
            push += errors.sum(dim=0)
            pull += (errors.flatten(1).T @ chunk).view_as(pull)
        along = points.view(*intercepts.shape, -1)[..., :-1]
        gradients = torch.empty(*intercepts.shape, len(self.mean) + 1, dtype=self.dtype, device=self.mean.device)
        gradients[..., :-1] = (pull - push[..., None] * self.mean) @ self.axes / len(self.labels)
        gradients[..., :-1] += penalties[:, None, None].to(self.dtype) * along
        gradients[..., -1] = push / len(self.labels)
        values = losses / len(self.labels) + penalties / 2 * along.double().square().sum(dim=(1, 2))
        return values, gradients.flatten(1)

    def _plain(self, points: Points) -> tuple[Float[Tensor, "problem class dim"], Float[Tensor, "problem class"]]:
        points = points.view(len(points), len(self.frequencies), -1)
        weights = points[..., :-1] @ self.axes.T
        return weights, points[..., -1] - weights @ self.mean


def _logits(
    features: Float[Tensor, "image dim"],
    weights: Float[Tensor, "problem class dim"],
    intercepts: Float[Tensor, "problem class"],
) -> Float[Tensor, "image problem class"]:
    return (features @ weights.flatten(0, 1).T).view(len(features), *intercepts.shape).add_(intercepts)


def _cross_entropy(
    logits: Float[Tensor, "image problem class"], labels: Int64[Tensor, " image"]
) -> tuple[Values, Float[Tensor, "image problem class"]]:
    """The sums of the losses, and the gradients of the losses in the place of the logits."""
    own = labels[:, None, None].expand(-1, logits.shape[1], 1)
    logits -= logits.amax(dim=2, keepdim=True)
    own_logits = logits.gather(2, own)
    sums = logits.exp_().sum(dim=2, keepdim=True)
    losses = (sums.log() - own_logits).sum(dim=(0, 2), dtype=torch.float64)
    logits /= sums
    logits.scatter_add_(2, own, torch.full_like(own_logits, -1))
    return losses, logits


def _chunks(
    features: np.ndarray | Tensor, intercepts: Float[Tensor, "problem class"]
) -> Iterator[tuple[slice, Tensor]]:
    """So many features at a time that their logits fit in memory, in the format and on the device of the intercepts."""
    most = CHUNK_BYTES_ON_GPU if intercepts.is_cuda else CHUNK_BYTES
    size = max(1, most // (intercepts.itemsize * max(intercepts.numel(), features.shape[1])))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        chunk = features[rows]
        yield rows, (torch.from_numpy(np.array(chunk)) if isinstance(chunk, np.ndarray) else chunk).to(intercepts)


def _principal_axes(
    features: Float[np.ndarray | Tensor, "image dim"],
) -> tuple[Float64[np.ndarray, " dim"], Float64[np.ndarray, " axis"], Float64[np.ndarray, "dim axis"]]:
    """The mean, and the variances along the axes. Raises BenchError if features are not finite."""
    moments = Moments(features.shape[1])
    for rows, chunk in _chunks(features, torch.empty(1, 1, dtype=torch.float32)):
        if not bool(chunk.isfinite().all()):
            first = rows.start + int((~chunk.isfinite().all(dim=1)).nonzero()[0])
            raise BenchError(f"the features of image {first} are not finite; look at the model that made them")
        moments.add(chunk.numpy())
    mean = moments.sum / moments.count
    variances, axes = np.linalg.eigh(moments.squares / moments.count - np.outer(mean, mean))
    return mean, np.maximum(variances, 0), axes
