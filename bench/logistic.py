"""Multinomial logistic regression with many L2 strengths, fitted together by L-BFGS.

The problems share the features and nothing else: each has its own history, step and line search, but all of them are
evaluated by the same matrix products. For one strength C the objective is scikit-learn's,

    C * sum of cross-entropies + |W|^2 / 2        (the intercepts are not pulled to zero),

divided by C * (number of images), so that its gradients are of the same size for all of them.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from mcbeit.errors import BenchError

HISTORY = 10  # pairs of steps and changes of the gradient
LOGIT_BYTES = 64 * 2**20  # of the scores that are there at once
ARMIJO, CURVATURE = 1e-4, 0.9  # of the Wolfe conditions
MAX_TRIALS = 20  # steps that are tried along a line
Features = Shaped[np.ndarray, "image dim"]


class Logistic(NamedTuple):
    """Fitted classifiers, one per strength."""

    weights: Float[Tensor, "strength class inputs"]  # the intercept is the last input
    converged: Bool[np.ndarray, " strength"]
    iterations: Int[np.ndarray, " strength"]

    def scores(self, features: Features) -> Float[np.ndarray, "strength image class"]:
        """Logits."""
        found = [_logits(self.weights, part) for part in _parts(features, self.weights)]
        return torch.cat(found, dim=1).cpu().numpy()

    def predict(self, features: Features) -> Int64[np.ndarray, "strength image"]:
        """The likeliest class."""
        found = [_logits(self.weights, part).argmax(dim=2) for part in _parts(features, self.weights)]
        return torch.cat(found, dim=1).cpu().numpy()


def fit_logistic(
    features: Features,
    labels: Int[np.ndarray, " image"],
    num_classes: int,
    strengths: Sequence[float],
    *,
    max_iterations: int = 1000,
    tolerance: float = 1e-7,
    dtype: Literal["float32", "float64"] = "float64",
    device: torch.device | None = None,
) -> Logistic:
    """Fit a classifier for every strength (scikit-learn's C).

    A fit has converged if no part of its gradient is larger than `tolerance`. Raises BenchError for features that are
    not finite, labels out of range, or labels of one class alone.
    """
    _check(features, labels, num_classes)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    problem = _Problem(features, labels, num_classes, strengths, getattr(torch, dtype), device)
    return _minimise(problem, max_iterations, tolerance)


class _Problem:
    """The objective of all strengths."""

    def __init__(
        self, features: Features, labels: np.ndarray, num_classes: int, strengths: Sequence[float],
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        self.features = torch.from_numpy(np.array(features)).to(device=device, dtype=dtype)
        self.labels = torch.from_numpy(np.asarray(labels, np.int64)).to(device)
        self.pull = 1 / (torch.tensor(list(strengths), dtype=dtype, device=device) * len(features))
        self.shape = (len(strengths), num_classes, self.features.shape[1] + 1)

    def start(self) -> Tensor:
        """Where all begin: zeros."""
        return torch.zeros(self.shape, dtype=self.features.dtype, device=self.features.device)

    def __call__(self, weights: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The values and gradients of the strengths `which`, whose weights these are."""
        count = len(self.features)
        values = torch.zeros(len(weights), dtype=weights.dtype, device=weights.device)
        gradients = torch.zeros_like(weights)
        for rows in torch.arange(count, device=weights.device).split(_rows_at_once(weights)):
            inputs, truth = self.features[rows], self.labels[rows]
            logits = _logits(weights, inputs)
            target = truth.expand(len(weights), -1)[:, :, None]
            values += (logits.logsumexp(dim=2) - logits.gather(2, target)[:, :, 0]).sum(dim=1) / count
            error = torch.softmax(logits, dim=2)
            error.scatter_add_(2, target, torch.full_like(target, -1, dtype=error.dtype))
            gradients[:, :, :-1] += (error.transpose(1, 2) @ inputs) / count
            gradients[:, :, -1] += error.sum(dim=1) / count
        pull = self.pull[which]
        values += 0.5 * pull * weights[:, :, :-1].square().sum(dim=(1, 2))
        gradients[:, :, :-1] += pull[:, None, None] * weights[:, :, :-1]
        return values, gradients


def _minimise(problem: _Problem, max_iterations: int, tolerance: float) -> Logistic:
    """L-BFGS of every problem side by side; those that are done leave the batch."""
    weights = problem.start()
    iterations, converged = np.full(len(weights), max_iterations), np.zeros(len(weights), bool)
    active = torch.arange(len(weights), device=weights.device)
    point, history = weights.clone(), _History()
    value, gradient = problem(point, active)
    is_stuck = torch.zeros_like(value, dtype=torch.bool)
    for iteration in range(max_iterations + 1):
        is_done = gradient.abs().amax(dim=(1, 2)) <= max(tolerance, 100 * torch.finfo(value.dtype).eps)
        leaves = is_done | is_stuck | (iteration == max_iterations)
        if bool(leaves.any()):
            weights[active[leaves]], iterations[active[leaves].cpu()] = point[leaves], iteration
            converged[active[is_done].cpu()] = True
            active, point, value, gradient = (one[~leaves] for one in (active, point, value, gradient))
            history.keep(~leaves)
        if not len(active):
            break
        direction = history.direction(gradient)
        step = _search(problem, active, point, value, gradient, direction)
        is_stuck = step.length == 0
        moved = step.length[:, None, None] * direction
        history.add(moved, step.gradient - gradient)
        point, value, gradient = point + moved, step.value, step.gradient
    return Logistic(weights, converged, iterations)


class _History:
    """The last steps of every problem, and how they changed its gradient."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change, 1 / their product (0: not of use)

    def add(self, step: Tensor, change: Tensor) -> None:
        """One more pair."""
        product = _dot(step, change)
        usable = product > torch.finfo(product.dtype).eps * _dot(change, change)
        self.pairs.append((step, change, torch.where(usable, 1 / product, 0)))
        del self.pairs[:-HISTORY]

    def keep(self, some: Tensor) -> None:
        """Forget the other problems."""
        self.pairs = [(step[some], change[some], inverse[some]) for step, change, inverse in self.pairs]

    def direction(self, gradient: Tensor) -> Tensor:
        """Where each problem should go: Nocedal and Wright, algorithm 7.4; at first, down the gradient."""
        if not self.pairs:
            return -gradient / gradient.abs().sum(dim=(1, 2)).clamp(min=1)[:, None, None]
        found, factors = gradient, []
        for step, change, inverse in reversed(self.pairs):
            factors.append(inverse * _dot(step, found))
            found = found - factors[-1][:, None, None] * change
        found = found * self._scale()[:, None, None]
        for (step, change, inverse), factor in zip(self.pairs, reversed(factors), strict=True):
            found = found + (factor - inverse * _dot(change, found))[:, None, None] * step
        return torch.where((_dot(found, gradient) > 0)[:, None, None], -found, -gradient)

    def _scale(self) -> Tensor:
        """The size of the inverse Hessian, by each problem's last pair of use."""
        scale = torch.ones_like(self.pairs[0][2])
        for _, change, inverse in self.pairs:
            scale = torch.where(inverse > 0, 1 / (inverse * _dot(change, change)).clamp(min=1e-300), scale)
        return scale


class _Step(NamedTuple):
    """How far each problem went along its direction, and what it found there; 0 if nowhere was better."""

    length: Tensor
    value: Tensor
    gradient: Tensor


def _search(
    problem: _Problem, which: Tensor, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> _Step:
    """A step that lowers the value enough and the slope too (weak Wolfe conditions), by bisection, of every problem."""
    slope = _dot(direction, gradient)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    length, found = torch.ones_like(value), _Step(torch.zeros_like(value), value.clone(), gradient.clone())
    open_ = torch.arange(len(value), device=value.device)
    slack = 10 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(MAX_TRIALS):
        tried = length[open_]
        new_value, new_gradient = problem(point[open_] + tried[:, None, None] * direction[open_], which[open_])
        is_lower = new_value <= value[open_] + ARMIJO * tried * slope[open_] + slack[open_]
        is_flatter = _dot(direction[open_], new_gradient) >= CURVATURE * slope[open_]
        better = open_[is_lower]
        found.length[better], found.value[better] = tried[is_lower], new_value[is_lower]
        found.gradient[better] = new_gradient[is_lower]
        high[open_[~is_lower]] = tried[~is_lower]
        low[open_[is_lower & ~is_flatter]] = tried[is_lower & ~is_flatter]
        open_ = open_[~(is_lower & is_flatter)]
        if not len(open_):
            break
        length = torch.where(torch.isinf(high), 2 * length, (low + high) / 2)
    return found


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of each problem."""
    return (left * right).sum(dim=(1, 2))


def _logits(
    weights: Float[Tensor, "strength class inputs"], features: Float[Tensor, "image dim"]
) -> Float[Tensor, "strength image class"]:
    strengths, classes, inputs = weights.shape
    flat = F.linear(features, weights[:, :, :-1].reshape(-1, inputs - 1), weights[:, :, -1].reshape(-1))
    return flat.unflatten(1, (strengths, classes)).transpose(0, 1)


def _rows_at_once(weights: Tensor) -> int:
    return max(1, LOGIT_BYTES // (weights.element_size() * weights.shape[0] * weights.shape[1]))


def _parts(features: Features, weights: Tensor) -> Iterator[Tensor]:
    """The features in parts whose logits are of bounded size."""
    size = _rows_at_once(weights)
    for start in range(0, len(features), size):
        yield torch.from_numpy(np.array(features[start : start + size])).to(weights)


def _check(features: Features, labels: np.ndarray, num_classes: int) -> None:
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} vectors have {len(labels)} labels")
    if not np.isfinite(features).all():
        raise BenchError("some vectors hold numbers that are not finite; embed these images again")
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        raise BenchError(f"labels go from {labels.min()} to {labels.max()}, but there are {num_classes} classes")
    if len(np.unique(labels)) < 2:
        raise BenchError("all images have one class, so there is nothing to tell apart")
