from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from images import photo
from PIL import Image

from mcbeit.config import validate
from mcbeit.detection.large_scale_jitter import JitterConfig, Placing, boxes_of, draw_placing, fit_placing
from mcbeit.detection.rle import decode, encode
from mcbeit.errors import ConfigError

CONFIG = JitterConfig()
SIDES = st.integers(1, 900)


def rectangle(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(photo(height, width))


# draw_placing


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_draw_placing__fits_into_the_drawn_square(height: int, width: int, seed: int) -> None:
    placing, rng = draw_placing(height, width, 64, CONFIG, np.random.default_rng(seed)), np.random.default_rng(seed)
    scale, along, coin = rng.uniform(0.1, 2.0), rng.uniform(), rng.random()
    factor = min(64 * scale / height, 64 * scale / width)
    assert placing.height == max(1, round(height * factor))
    assert placing.width == max(1, round(width * factor))
    assert max(placing.height, placing.width) <= 128
    assert placing.top == round(max(placing.height - 64, 0) * along)
    assert placing.left == round(max(placing.width - 64, 0) * along)
    assert placing.flip == (coin < 0.5)


def test_draw_placing__covers_its_ranges_evenly() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_placing(480, 640, 1024, CONFIG, rng) for _ in range(4000)]
    widths = np.array([placing.width for placing in drawn])
    assert (widths.min(), widths.max()) == pytest.approx((102, 2048), abs=3)
    assert widths.mean() == pytest.approx(1.05 * 1024, rel=0.02)
    assert Counter(placing.flip for placing in drawn)[True] == pytest.approx(2000, abs=130)
    cut = [placing.left / (placing.width - 1024) for placing in drawn if placing.width > 1100]
    assert np.mean(cut) == pytest.approx(0.5, abs=0.03)
    assert all(placing.left == 0 for placing in drawn if placing.width <= 1024)


@pytest.mark.parametrize(("sides", "wanted"), [((480, 640), (768, 1024)), ((333, 500), (682, 1024)),
                                                 ((640, 427), (1024, 683)), ((1, 5000), (1, 1024))])  # fmt: skip
def test_fit_placing__makes_the_longer_side_as_long_as_wanted(sides: Any, wanted: Any) -> None:
    placing = fit_placing(*sides, 1024)
    assert placing == Placing(*wanted, top=0, left=0, flip=False, size=1024)


# images


def test_image__larger_than_the_square_is_cut() -> None:
    image = picture(30, 40)
    square = Placing(60, 80, 11, 15, flip=False, size=32).image(image)
    resized = np.asarray(image.resize((80, 60), Image.Resampling.BILINEAR))
    assert square.dtype == torch.uint8
    assert torch.equal(square.permute(1, 2, 0), torch.from_numpy(resized[11:43, 15:47].copy()))


def test_image__smaller_than_the_square_is_padded_and_only_then_mirrored() -> None:
    image = picture(10, 20)
    plain, mirrored = (Placing(10, 20, 0, 0, flip=flip, size=32).image(image) for flip in (False, True))
    assert torch.equal(plain[:, :10, :20].permute(1, 2, 0), torch.from_numpy(np.asarray(image).copy()))
    assert (plain[:, 10:] == 128).all()
    assert (plain[:, :, 20:] == 128).all()
    assert torch.equal(mirrored, plain.flip(-1))
    assert (mirrored[:, :, :12] == 128).all()  # so the padding of a mirrored image lies at the left


# masks


@pytest.mark.parametrize("flip", [False, True])
def test_mask__polygons_move_with_their_image(flip: bool) -> None:
    """A rectangle of 10 x 20 pixels at (20, 10), in an image that doubles and is cut from (8, 4) on."""
    mask = Placing(200, 200, 4, 8, flip=flip, size=64).mask(rectangle(20, 10, 30, 30), 100, 100)
    wanted = np.zeros((64, 64), dtype=bool)
    wanted[16:56, 32:52] = True
    assert np.array_equal(mask, wanted[:, ::-1] if flip else wanted)


def test_mask__what_is_outside_of_the_square_is_cut_off() -> None:
    placing = Placing(200, 200, 50, 50, flip=False, size=64)
    mask = placing.mask(rectangle(0, 0, 40, 40), 100, 100)
    wanted = np.zeros((64, 64), dtype=bool)
    wanted[:30, :30] = True
    assert np.array_equal(mask, wanted)
    assert not placing.mask(rectangle(70, 70, 90, 90), 100, 100).any()
    both = placing.mask([*rectangle(0, 0, 40, 40), *rectangle(50, 26, 54, 30)], 100, 100)
    assert int(both.sum()) == 900 + 8 * 8


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_mask__codes_move_as_the_nearest_pixels(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((3, 3)) < 0.5, np.ones((-(-height // 3), -(-width // 3))))[:height, :width] > 0
    placing = draw_placing(height, width, 32, CONFIG, rng)
    moved = placing.mask(encode(mask), height, width)
    for y, x in [(0, 0), (31, 31), (5, 20), (20, 5)]:
        row, column = y + placing.top, (31 - x if placing.flip else x) + placing.left
        inside = row < placing.height and column < placing.width
        place = int((row + 0.5) * (height / placing.height)), int((column + 0.5) * (width / placing.width))
        assert moved[y, x] == (inside and mask[place])


@given(st.integers(0, 2**32))
def test_mask__polygons_and_codes_agree_but_for_edges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    left, top = rng.uniform(0, 40, 2)
    right, bottom = rng.uniform(60, 99, 2)
    polygon = rectangle(left, top, right, bottom)
    placing = draw_placing(100, 100, 64, JitterConfig(scale=(0.5, 2.0)), rng)
    from_polygon, from_code = (placing.mask(s, 100, 100) for s in (polygon, encode(decode(polygon, 100, 100))))
    factor = placing.height / 100
    assert (from_polygon != from_code).sum() <= 4 * 64 * (factor + 1)  # a pixel along four edges


def test_masks__are_stacked_as_bytes() -> None:
    placing = Placing(100, 100, 0, 0, flip=False, size=100)
    masks = placing.masks([rectangle(0, 0, 9, 9), encode(np.ones((100, 100), dtype=bool))], 100, 100)
    assert masks.dtype == np.uint8
    assert masks.sum(axis=(1, 2)).tolist() == [81, 10000]
    assert placing.masks([], 100, 100).shape == (0, 100, 100)


def test_boxes_of__are_the_edges_of_pixels() -> None:
    masks = np.zeros((3, 8, 9), dtype=np.uint8)
    masks[0, 2:5, 3] = 1
    masks[0, 6, 8] = 1
    masks[2] = 1
    assert boxes_of(masks).tolist() == [[3, 2, 9, 7], [0, 0, 0, 0], [0, 0, 9, 8]]
    assert boxes_of(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize("scale", [[2.0, 1.0], [0.0, 1.0]])
def test_jitter_config__refuses_an_empty_range(scale: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"jitter\.scale must be ordered and positive"):
        validate(JitterConfig, {"scale": scale})
