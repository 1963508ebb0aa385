"""Resizing a relative position bias table to another patch grid by the geometric cubic rule of the official code.

Distances are not equally important: the source entries are laid out on a geometric progression (dense near 0) that
spans the target range, and a cubic spline through them is read at the integer target distances (method of BEiT's
`run_class_finetuning.py`; there by SciPy's `interp2d`, since removed; here by one small matrix, equal to 1e-14).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

NUM_CLS_ROWS = 3  # cls to patch, patch to cls, cls to cls: the last rows of every table


def num_table_rows(grid: tuple[int, int]) -> int:
    """The rows of a bias table for a patch grid: one per relative distance, and three for the cls token."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + NUM_CLS_ROWS


def growth_ratio(source_size: int, target_size: int) -> float:
    """The ratio q of the progression 1, q, q^2, ... whose `source_size // 2` terms sum to `target_size // 2`.

    Sizes are those of the distance axis (2 * patches - 1). Found by bisection in [1.01, 1.5] to a width of 1e-6; as in
    the official code, the last ratio tried counts, not the middle of what is left.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        reach = (1 - middle ** (source_size // 2)) / (1 - middle)
        low, high = (low, middle) if reach > target_size // 2 else (middle, high)
    return middle


def source_coordinates(source_size: int, target_size: int) -> Float[np.ndarray, " source"]:
    """Where the source entries lie on the target's axis of distances: 0, +-1, +-(1 + q), ..."""
    steps = growth_ratio(source_size, target_size) ** np.arange(source_size // 2)
    positive = np.cumsum(steps)
    return np.concatenate([-positive[::-1], [0.0], positive])


def cubic_matrix(
    source: Float[np.ndarray, " source"], target: Float[np.ndarray, " target"]
) -> Float[np.ndarray, "..."]:
    """The matrix [target, source] that reads the not-a-knot cubic spline through `source` at `target`.

    Targets outside the source range are read at its end.
    """
    target = np.clip(target, source[0], source[-1])
    if len(source) <= 4:  # one polynomial passes through all points
        return np.stack(
            [
                np.prod((target[:, None] - others) / (point - others), axis=1)
                for i, point in enumerate(source)
                for others in [np.delete(source, i)]
            ],
            axis=1,
        )
    second = _second_derivatives(source)
    interval = np.clip(np.searchsorted(source, target, side="right") - 1, 0, len(source) - 2)
    width = source[interval + 1] - source[interval]
    right = ((target - source[interval]) / width)[:, None]
    left = 1 - right
    values = np.eye(len(source))
    bend = (left**3 - left) * second[interval] + (right**3 - right) * second[interval + 1]
    return left * values[interval] + right * values[interval + 1] + bend * (width[:, None] ** 2) / 6


def resize_table(
    table: Float[Tensor, "source_rows head"], source_grid: tuple[int, int], target_grid: tuple[int, int]
) -> Float[Tensor, "target_rows head"]:
    """Resize a bias table from one patch grid to another; the three cls rows are kept as they are.

    Raises ValueError if the table does not belong to `source_grid`.
    """
    if len(table) != num_table_rows(source_grid):
        raise ValueError(f"a table for grid {source_grid} has {num_table_rows(source_grid)} rows, found {len(table)}")
    if source_grid == target_grid:
        return table
    sizes = [(2 * source - 1, 2 * target - 1) for source, target in zip(source_grid, target_grid, strict=True)]
    rows, columns = (
        torch.from_numpy(cubic_matrix(source_coordinates(s, t), np.arange(-(t // 2), t // 2 + 1.0))) for s, t in sizes
    )
    patches = table[:-NUM_CLS_ROWS].detach().cpu().double().view(sizes[0][0], sizes[1][0], -1)
    resized = torch.einsum("ts,sch,dc->tdh", rows, patches, columns).flatten(0, 1)
    return torch.cat([resized.to(table), table[-NUM_CLS_ROWS:].detach()])


def _second_derivatives(points: Float[np.ndarray, " source"]) -> Float[np.ndarray, "source source"]:
    """The linear map from values at `points` to the second derivatives of their not-a-knot spline."""
    n, h = len(points), np.diff(points)
    left, right = np.zeros((n, n)), np.zeros((n, n))
    for i in range(1, n - 1):
        left[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i, i - 1 : i + 2] = 6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]
    left[0, :3] = h[1], -(h[0] + h[1]), h[0]
    left[-1, -3:] = h[-1], -(h[-2] + h[-1]), h[-2]
    return np.linalg.solve(left, right)
