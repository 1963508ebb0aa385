"""Which patches are hidden: masks of a fixed count, drawn from an explicit generator. True = masked."""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Bool
from pydantic import Field

from mcbeit.config import Config

Grid = tuple[int, int]
Mask = Bool[np.ndarray, "height width"]


class MaskConfig(Config):
    """How a mask is drawn. Every kind masks exactly `int(ratio * patches)` patches, and at least one."""

    kind: Literal["random", "block", "inverse_block"] = "random"
    ratio: float = Field(0.75, gt=0, lt=1)
    min_block: int = Field(16, ge=1)  # block: patches of the smallest rectangle
    min_aspect: float = Field(0.3, gt=0, le=1)  # block, inverse_block: height/width is log-uniform in [a, 1/a]
    roll: bool = True  # inverse_block: shift the visible rectangle around the borders


def num_masked(grid: Grid, ratio: float) -> int:
    """The number of masked patches: `int(ratio * height * width)`, at least 1, and at least 1 left visible."""
    patches = grid[0] * grid[1]
    return min(max(int(ratio * patches), 1), patches - 1)


def draw_mask(grid: Grid, config: MaskConfig, rng: np.random.Generator) -> Mask:
    """Draw one mask of the configured kind."""
    kinds: dict[str, Callable[[Grid, int, MaskConfig, np.random.Generator], Mask]] = {
        "random": random_mask,
        "block": block_mask,
        "inverse_block": inverse_block_mask,
    }
    return kinds[config.kind](grid, num_masked(grid, config.ratio), config, rng)


def random_mask(grid: Grid, count: int, config: MaskConfig, rng: np.random.Generator) -> Mask:
    """`count` patches, uniformly at random."""
    return _set_count(np.zeros(grid, bool), count, rng)


def block_mask(grid: Grid, count: int, config: MaskConfig, rng: np.random.Generator) -> Mask:
    """A union of random rectangles (BEiT), then single patches added at random until `count` are masked.

    As in BEiT no rectangle is as high or wide as the grid: on a grid one or two patches high the mask is random.
    """
    mask = np.zeros(grid, bool)
    while (remaining := count - int(mask.sum())) > 0 and _add_block(mask, remaining, config, rng):
        pass
    return _set_count(mask, count, rng)


def inverse_block_mask(grid: Grid, count: int, config: MaskConfig, rng: np.random.Generator) -> Mask:
    """All but one rectangle, which with `roll` may wrap around the borders (CAPI, arXiv 2502.08769)."""
    height, width = grid
    visible = height * width - count
    aspect = _aspect(config, rng)
    block_height = min(max(round(math.sqrt(visible * aspect)), math.ceil(visible / width)), height)
    block_width = min(math.ceil(visible / block_height), width)
    mask = np.ones(grid, bool)
    mask[:block_height, :block_width] = False
    room = grid if config.roll else (height - block_height + 1, width - block_width + 1)
    shift = (int(rng.integers(room[0])), int(rng.integers(room[1])))
    return _set_count(np.roll(mask, shift, axis=(0, 1)), count, rng)


def _aspect(config: MaskConfig, rng: np.random.Generator) -> float:
    bound = abs(math.log(config.min_aspect))
    return math.exp(rng.uniform(-bound, bound))


def _add_block(mask: Mask, remaining: int, config: MaskConfig, rng: np.random.Generator) -> bool:
    """Mask one more rectangle with at most `remaining` new patches; False if ten tries found none."""
    height, width = mask.shape
    for _ in range(10):
        area = rng.uniform(*sorted((config.min_block, remaining)))
        aspect = _aspect(config, rng)
        block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < block_height < height and 0 < block_width < width):
            continue
        top, left = int(rng.integers(height - block_height + 1)), int(rng.integers(width - block_width + 1))
        block = mask[top : top + block_height, left : left + block_width]
        if 0 < block.size - int(block.sum()) <= remaining:
            block[:] = True
            return True
    return False


def _set_count(mask: Mask, count: int, rng: np.random.Generator) -> Mask:
    """Mask or unmask patches at random until exactly `count` are masked."""
    flat = mask.reshape(-1)
    excess = int(flat.sum()) - count
    if excess:
        flat[rng.choice(np.flatnonzero(flat == (excess > 0)), size=abs(excess), replace=False)] = excess < 0
    return mask
