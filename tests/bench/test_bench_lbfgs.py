"""Many minima at once."""

import torch
from torch import Tensor

from mcbeit.bench.lbfgs import minimise

TARGETS = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
CURVATURES = torch.stack([torch.logspace(0, decades, 10, dtype=torch.float64) for decades in (0, 2, 4)])


def bowls(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Quadratic functions, the later the less round."""
    gradients = CURVATURES[which].to(points) * (points - TARGETS[which].to(points))
    return ((points - TARGETS[which].to(points)) * gradients).sum(dim=1).double() / 2, gradients


def valleys(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Rosenbrock's function, each steeper than the one before."""
    x, y = points.T
    steepness = 10.0 * (which + 1)
    along, across = 1 - x, y - x**2
    gradients = torch.stack([-2 * along - 4 * steepness * x * across, 2 * steepness * across], dim=1)
    return along**2 + steepness * across**2, gradients


def test_minimise__finds_the_minima_of_quadratic_functions() -> None:
    start = torch.zeros(3, 10, dtype=torch.float64)
    found = minimise(bowls, start, torch.ones_like(start), tolerance=1e-16, max_iterations=500)
    assert found.converged.all()
    assert torch.allclose(found.points, TARGETS, atol=1e-4)
    first, second, third = found.iterations.tolist()
    assert first == 1 < second < third


def test_minimise__needs_one_step_where_the_curvature_is_known() -> None:
    start = torch.zeros(3, 10, dtype=torch.float64)
    found = minimise(bowls, start, 1 / CURVATURES, tolerance=1e-16, max_iterations=500)
    assert found.iterations.tolist() == [1, 1, 1]
    assert torch.allclose(found.points, TARGETS)


def test_minimise__finds_the_end_of_curved_valleys() -> None:
    start = torch.tensor([[-1.2, 1.0], [-1.2, 1.0], [3.0, -3.0]], dtype=torch.float64)
    found = minimise(valleys, start, torch.ones_like(start), tolerance=1e-16, max_iterations=200)
    assert found.converged.all()
    assert torch.allclose(found.points, torch.ones_like(start), atol=1e-5)


def test_minimise__problems_do_not_see_each_other() -> None:
    start = torch.tensor([[-1.2, 1.0], [0.5, 2.0], [3.0, -3.0]], dtype=torch.float64)
    scale = torch.ones_like(start)
    together = minimise(valleys, start, scale, tolerance=1e-12, max_iterations=200)
    for number in range(3):
        alone = minimise(
            lambda points, which, number=number: valleys(points, which + number),
            start[[number]],
            scale[[number]],
            tolerance=1e-12,
            max_iterations=200,
        )
        assert torch.equal(alone.points[0], together.points[number])
        assert alone.iterations[0] == together.iterations[number]


def test_minimise__stops_where_it_starts_if_that_is_a_minimum() -> None:
    found = minimise(bowls, TARGETS, torch.ones_like(TARGETS), tolerance=1e-9, max_iterations=10)
    assert found.converged.all()
    assert found.iterations.tolist() == [0, 0, 0]


def test_minimise__says_what_has_not_converged() -> None:
    start = torch.zeros(3, 10, dtype=torch.float64)
    found = minimise(bowls, start, torch.ones_like(start), tolerance=1e-16, max_iterations=20)
    assert found.converged.tolist() == [True, False, False]
    assert found.iterations.tolist() == [1, 20, 20]
    values = bowls(found.points, torch.arange(3))[0]
    assert (values < bowls(start, torch.arange(3))[0]).all()


def test_minimise__ends_where_rounding_hides_the_rest() -> None:
    def hidden(points: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = bowls(points, which)
        return values.float().double() + 1e4, gradients

    start = torch.full((3, 10), 5.0)
    found = minimise(hidden, start, torch.ones_like(start), tolerance=0.0, max_iterations=1000)
    assert found.converged.all()
    assert (bowls(found.points, torch.arange(3))[0] < 1e-3).all()
