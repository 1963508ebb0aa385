"""L-BFGS for many problems of the same shape at once (Liu and Nocedal, 1989), each with its own history and step sizes.

All problems that are not finished are evaluated together, so that what they share, such as reading data, is done once.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

Points = Float[Tensor, "problem number"]
Values = Float64[Tensor, " problem"]
Problems = Int64[Tensor, " problem"]
Evaluate = Callable[[Points, Problems], tuple[Values, Points]]  # the values of these problems and their gradients

HISTORY = 10  # steps that are remembered
MAX_TRIALS = 25  # evaluations for one step
DECREASE, CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions


class Minima(NamedTuple):
    """Where each problem ended, and whether at a minimum."""

    points: Points
    converged: Bool[Tensor, " problem"]
    iterations: Int64[Tensor, " problem"]


class _State(NamedTuple):
    """The problems that go on."""

    which: Problems
    scale: Points
    rounding: Values  # of the values
    points: Points
    values: Values
    gradients: Points

    def of(self, some: Bool[Tensor, " problem"]) -> "_State":
        return self if bool(some.all()) else _State(*(part[some] for part in self))


class _Step(NamedTuple):
    """A step of each problem and how it changed the gradient."""

    step: Points
    change: Points
    product: Values  # of the two; positive, or the step is of no use

    def of(self, some: Bool[Tensor, " problem"]) -> "_Step":
        return self if bool(some.all()) else _Step(*(part[some] for part in self))


def minimise(
    evaluate: Evaluate, start: Points, scale: Points, *, tolerance: float, max_iterations: int, history: int = HISTORY
) -> Minima:
    """Minimise smooth functions from `start`; `scale` is a guess of each number's inverse curvature.

    A problem has converged when the model of its curvature expects its value to fall by no more than `tolerance` times
    what it has fallen since the start, or by less than the rounding of the value where no step makes it fall.
    """
    which = torch.arange(len(start), device=start.device)
    found = Minima(start.clone(), torch.zeros_like(which, dtype=torch.bool), torch.zeros_like(which))
    highest, gradients = evaluate(start, which)
    state = _State(which, scale, torch.finfo(start.dtype).eps * highest.abs(), start, highest, gradients)
    steps: list[_Step] = []
    for iteration in range(max_iterations + 1):
        directions = _directions(state, steps)
        slopes = _dot(state.gradients, directions)
        is_open = -slopes / 2 > tolerance * (highest[state.which] - state.values)
        found.converged[state.which[~is_open]] = True
        if iteration == max_iterations or not bool(is_open.any()):
            break
        before, directions, slopes = state.of(is_open), directions[is_open], slopes[is_open]
        state, has_moved = _walk(evaluate, before, directions, slopes)
        found.converged[before.which[~has_moved]] = (-slopes / 2 < before.rounding)[~has_moved]
        before, steps = before.of(has_moved), [one.of(is_open).of(has_moved) for one in steps[1 - history :]]
        step, change = state.points - before.points, state.gradients - before.gradients
        steps.append(_Step(step, change, _dot(step, change)))
        found.points[state.which] = state.points
        found.iterations[state.which] += 1
    return found


def _dot(some: Points, others: Points) -> Values:
    return (some * others).sum(dim=1, dtype=torch.float64)


def _directions(state: _State, steps: list[_Step]) -> Points:
    """Minus the gradients times the inverse of the curvature that the steps have shown."""
    directions = -state.gradients
    shares = []
    for one in reversed(steps):
        share = torch.where(one.product > 0, _dot(one.step, directions) / one.product, 0.0)
        directions.addcmul_(one.change, -share.to(directions.dtype)[:, None])
        shares.append(share)
    directions *= state.scale
    if steps:
        last = steps[-1]
        size = torch.where(last.product > 0, last.product / _dot(last.change, state.scale * last.change), 1.0)
        directions *= size.to(directions.dtype)[:, None]
    for one, share in zip(steps, reversed(shares), strict=True):
        rest = torch.where(one.product > 0, share - _dot(one.change, directions) / one.product, 0.0)
        directions.addcmul_(one.step, rest.to(directions.dtype)[:, None])
    return directions


def _walk(
    evaluate: Evaluate, state: _State, directions: Points, slopes: Values
) -> tuple[_State, Bool[Tensor, " problem"]]:
    """One step of each problem to where the weak Wolfe conditions hold; and which problems have found such a place.

    Steps are doubled until they are too long, then the place lies between two lengths (Lewis and Overton, 2013).
    """
    after = state._replace(points=state.points.clone(), values=state.values.clone(), gradients=state.gradients.clone())
    length, low, high = torch.ones_like(slopes), torch.zeros_like(slopes), torch.full_like(slopes, torch.inf)
    has_moved = torch.zeros_like(state.which, dtype=torch.bool)
    for _ in range(MAX_TRIALS):
        some = (~has_moved).nonzero().flatten()
        if not len(some):
            break
        points = torch.addcmul(state.points[some], directions[some], length[some, None].to(directions.dtype))
        values, gradients = evaluate(points, state.which[some])
        falls = values <= (state.values + DECREASE * length * slopes + state.rounding)[some]
        flattens = _dot(gradients, directions[some]) >= CURVATURE * slopes[some]
        is_good = falls & flattens
        good = some[is_good]
        after.points[good], after.values[good], after.gradients[good] = (
            points[is_good],
            values[is_good],
            gradients[is_good],
        )
        has_moved[good] = True
        high[some[~falls]], low[some[falls]] = length[some[~falls]], length[some[falls]]
        length = torch.where(high.isinf(), 2 * length, (low + high) / 2)
    return after.of(has_moved), has_moved
