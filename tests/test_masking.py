import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcbeit.config import validate
from mcbeit.errors import ConfigError
from mcbeit.masking import MaskConfig, _add_block, draw_mask, num_masked

KINDS = ["random", "block", "inverse_block"]


def masks(kind: Any, count: int = 100, grid: tuple[int, int] = (14, 14), **options: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [draw_mask(grid, MaskConfig(kind=kind, **options), rng) for _ in range(count)]


def neighbours(mask: np.ndarray) -> int:
    """Pairs of adjacent masked patches."""
    return int((mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum())


def extent(occupied: np.ndarray) -> int:
    """The shortest interval that covers all that is occupied of an axis; it may go around the end."""
    places = np.flatnonzero(occupied)
    gaps = np.diff(places, append=places[0] + len(occupied))
    return len(occupied) + 1 - int(gaps.max())


# draw_mask


@given(
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 16), st.integers(1, 16)).filter(lambda grid: grid != (1, 1)),
    st.floats(0.001, 0.999),
    st.integers(1, 40),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_draw_mask__has_the_exact_count(
    kind: Any, grid: tuple[int, int], ratio: float, min_block: int, min_aspect: float, roll: bool, seed: int
) -> None:
    config = MaskConfig(kind=kind, ratio=ratio, min_block=min_block, min_aspect=min_aspect, roll=roll)
    mask = draw_mask(grid, config, np.random.default_rng(seed))
    assert mask.shape == grid
    assert mask.dtype == bool
    assert mask.sum() == num_masked(grid, ratio)
    assert 1 <= mask.sum() < mask.size


@pytest.mark.parametrize(("kind", "ratio", "masked"), [("random", 0.75, 147), ("block", 0.3827, 75)])
def test_draw_mask__counts_of_the_published_recipes(kind: str, ratio: float, masked: int) -> None:
    assert {int(mask.sum()) for mask in masks(kind, ratio=ratio)} == {masked}


def test_draw_mask__is_random_three_quarters_by_default() -> None:
    assert MaskConfig() == MaskConfig(kind="random", ratio=0.75)


@pytest.mark.parametrize("kind", KINDS)
def test_draw_mask__repeats_itself_by_its_generator(kind: Any) -> None:
    config = MaskConfig(kind=kind)
    first, second, other = (draw_mask((14, 14), config, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_draw_mask__leaves_the_global_generator_alone(kind: str) -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002  the one that must not be used
    masks(kind, 3)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.parametrize("options", [{"kind": "random"}, {"kind": "inverse_block", "roll": True}])
def test_draw_mask__hides_every_patch_equally_often(options: dict[str, Any]) -> None:
    share = np.mean(masks(**options, count=2000, grid=(4, 6)), axis=0)
    np.testing.assert_allclose(share, 0.75, atol=0.05)  # 5 standard deviations of a mean of 2000


# block


def test_block_mask__is_of_one_piece_where_a_random_one_is_not() -> None:
    """75 of 196 patches at random have 53 adjacent pairs on average, a compact block has about 130."""
    block, random = (np.array([neighbours(m) for m in masks(kind, ratio=0.3827)]) for kind in ("block", "random"))
    assert block.mean() > 100 > 70 > random.max()
    assert random.mean() == pytest.approx(53, abs=3)
    assert block.min() > random.mean()


def test_block_mask__makes_blocks_no_smaller_than_asked() -> None:
    few, many = (
        np.mean([neighbours(mask) for mask in masks("block", ratio=0.3827, min_block=size)]) for size in (1, 75)
    )
    assert few < many - 5


# inverse_block


@pytest.mark.parametrize("roll", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (7, 11), (2, 9), (1, 12)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.95])
def test_inverse_block_mask__leaves_one_rectangle_but_for_less_than_a_column(
    grid: tuple[int, int], ratio: float, roll: bool
) -> None:
    for mask in masks("inverse_block", 50, grid, ratio=ratio, roll=roll):
        visible = ~mask
        height, width = extent(visible.any(axis=1)), extent(visible.any(axis=0))
        assert 0 <= height * width - visible.sum() < height


def wraps(mask: np.ndarray) -> bool:
    """Whether the visible rectangle touches opposite borders without spanning the grid."""
    lines = [(~mask).any(axis=axis) for axis in (0, 1)]
    return any(line[0] and line[-1] and not line.all() for line in lines)


def test_inverse_block_mask__wraps_around_the_borders_only_if_rolled() -> None:
    assert sum(wraps(mask) for mask in masks("inverse_block", roll=True)) > 30
    assert not any(wraps(mask) for mask in masks("inverse_block", roll=False))


def test_inverse_block_mask__has_aspects_as_far_apart_as_asked() -> None:
    def aspects(min_aspect: float) -> np.ndarray:
        found = masks("inverse_block", 300, (60, 60), ratio=0.9, min_aspect=min_aspect)
        return np.array([extent((~mask).any(axis=1)) / extent((~mask).any(axis=0)) for mask in found])

    assert set(aspects(1.0)) == {1.0}
    wide = aspects(0.3)
    assert 0.27 < wide.min() < 0.33
    assert 3.0 < wide.max() < 3.7
    assert 0.4 < np.mean(wide > 1) < 0.6


# num_masked, MaskConfig


@pytest.mark.parametrize(
    ("grid", "ratio", "masked"),
    [((14, 14), 0.75, 147), ((14, 14), 0.3827, 75), ((1, 2), 0.99, 1), ((1, 2), 0.01, 1), ((2, 2), 0.99, 3)],
)
def test_num_masked__is_rounded_down_with_one_masked_and_one_visible(
    grid: tuple[int, int], ratio: float, masked: int
) -> None:
    assert num_masked(grid, ratio) == masked


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "blocks"}, "kind: input should be 'random', 'block' or 'inverse_block'"),
        ({"ratio": 1.0}, "ratio: input should be less than 1"),
        ({"ratio": 0.0}, "ratio: input should be greater than 0"),
        ({"min_block": 0}, "min_block: input should be greater than or equal to 1"),
        ({"min_aspect": 1.5}, "min_aspect: input should be less than or equal to 1"),
        ({"mask_ratio": 0.5}, "unknown key 'mask_ratio'"),
    ],
)
def test_mask_config__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(MaskConfig, values)


def test_add_block__leaves_a_third_of_the_masks_unfull_as_beit_does() -> None:
    """75 of 196 patches: 66.6 % of BEiT's masks are full, their mean is 74.47 (measured on the official code)."""
    rng, config, counts = np.random.default_rng(0), MaskConfig(kind="block"), []
    for _ in range(1500):
        mask = np.zeros((14, 14), bool)
        while (remaining := 75 - int(mask.sum())) > 0 and _add_block(mask, remaining, config, rng):
            pass
        counts.append(int(mask.sum()))
    assert np.mean(counts) == pytest.approx(74.47, abs=0.15)
    assert np.mean(np.array(counts) == 75) == pytest.approx(0.666, abs=0.04)
