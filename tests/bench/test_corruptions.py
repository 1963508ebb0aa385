"""Corruptions are those of ImageNet-C in kind and strength, and nothing but the generator makes them random."""

import io
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from mcbeit.bench.corruptions import (
    CORRUPTION_NAMES,
    CORRUPTIONS,
    LEFT_OUT,
    SEVERITIES,
    CorruptionName,
    _elastic_transform,
    _plasma,
    _random_affine,
    _scattered,
    _zoomed,
    corrupt,
)
from mcbeit.bench.shifted_sets import IMAGENET_C
from mcbeit.errors import BenchError

EACH = pytest.mark.parametrize("name", CORRUPTION_NAMES)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth shapes with hard edges, in colours."""
    values = ndimage.gaussian_filter(rng().normal(size=(64, 64, 3)), (6, 6, 0))
    values = 110 + 60 * values / values.std()
    values[20:40, 10:30] = (220, 40, 90)
    return values.clip(0, 255).astype(np.uint8)


def grey(value: int, size: int = 200) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def strength(name: CorruptionName, severity: int) -> Any:
    return CORRUPTIONS[name].strengths[severity - 1]


def damage(corrupted: np.ndarray, whole: np.ndarray) -> float:
    return float(np.abs(corrupted.astype(float) - whole).mean())


def test_names__are_those_of_imagenet_c_that_need_neither_imagemagick_nor_photographs() -> None:
    assert set(CORRUPTION_NAMES) == set(IMAGENET_C) - set(LEFT_OUT)
    assert list(CORRUPTIONS) == list(CORRUPTION_NAMES)
    assert all(len(one.strengths) == len(SEVERITIES) for one in CORRUPTIONS.values())


@EACH
def test_corrupt__keeps_the_size_and_leaves_the_image_alone(name: CorruptionName, picture: np.ndarray) -> None:
    before = picture.copy()
    for severity in SEVERITIES:
        found = corrupt(picture, name, severity, rng())
        assert (found.shape, found.dtype) == (picture.shape, np.uint8)
        assert damage(found, picture) > 0.5
    np.testing.assert_array_equal(picture, before)


@EACH
def test_corrupt__depends_on_the_generator_alone(name: CorruptionName, picture: np.ndarray) -> None:
    first, again, other = (corrupt(picture, name, 3, rng(seed)) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    is_random = name in ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "fog", "elastic_transform")
    assert np.array_equal(first, other) is not is_random


@pytest.mark.parametrize("name", [name for name in CORRUPTION_NAMES if name not in ("elastic_transform", "glass_blur")])
def test_corrupt__is_stronger_at_each_severity(name: CorruptionName, picture: np.ndarray) -> None:
    found = [damage(corrupt(picture, name, severity, rng()), picture) for severity in SEVERITIES]
    assert found == sorted(found)
    assert found[-1] > 1.2 * found[0]


@pytest.mark.parametrize("severity", [1, 2])
def test_gaussian_noise__has_the_deviation_of_its_strength(severity: int) -> None:
    found = corrupt(grey(128), "gaussian_noise", severity, rng()).astype(float)
    assert found.std() == pytest.approx(255 * strength("gaussian_noise", severity), rel=0.01)
    assert found.mean() == pytest.approx(128 - 0.5, abs=0.3)  # cut off, not rounded


def test_shot_noise__has_the_variance_of_the_photons() -> None:
    found = corrupt(grey(51), "shot_noise", 1, rng()) / 255
    assert found.mean() == pytest.approx(0.2, abs=0.01)
    assert found.var() == pytest.approx(0.2 / strength("shot_noise", 1), rel=0.05)


def test_impulse_noise__is_black_or_white_at_the_share_of_its_strength() -> None:
    found = corrupt(grey(100), "impulse_noise", 4, rng())
    assert set(np.unique(found)) == {0, 100, 255}
    assert (found != 100).mean() == pytest.approx(strength("impulse_noise", 4), abs=0.005)
    assert (found == 0).mean() == pytest.approx((found == 255).mean(), abs=0.005)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur__is_a_disc(severity: int) -> None:
    radius, _ = strength("defocus_blur", severity)
    spot = grey(0, 64)
    spot[31:34, 31:34] = 255
    rows, columns = np.nonzero(corrupt(spot, "defocus_blur", severity, rng())[..., 0])
    assert np.hypot(rows - 32, columns - 32).max() == pytest.approx(radius + 1, abs=1.1)
    assert np.ptp(corrupt(grey(77, 64), "defocus_blur", severity, rng())) <= 1


def scattered_one_by_one(height: int, width: int, distance: int, generator: np.random.Generator) -> np.ndarray:
    """As the published code goes over an image, pixel by pixel."""
    rows, columns = height - 2 * distance, width - 2 * distance
    down, right = generator.integers(-distance, distance, size=(2, rows, columns))
    found = np.arange(height * width).reshape(height, width)
    for i in range(height - distance, distance, -1):
        for j in range(width - distance, distance, -1):
            dy, dx = down[i - distance - 1, j - distance - 1], right[i - distance - 1, j - distance - 1]
            found[i, j] = found[i + dy, j + dx]
    return found.ravel()


@pytest.mark.parametrize(("height", "width", "distance"), [(20, 31, 1), (33, 24, 2), (32, 32, 4)])
def test_glass__is_what_a_loop_over_pixels_makes(height: int, width: int, distance: int) -> None:
    found = _scattered(height, width, distance, rng(7))
    np.testing.assert_array_equal(found, scattered_one_by_one(height, width, distance, rng(7)))
    assert (found != np.arange(height * width)).mean() > 0.3


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.06, 1.13, 1.3])
def test_zoomed__is_the_middle_of_scipys_zoom(factor: float, picture: np.ndarray) -> None:
    values = picture / 255
    cut = int(np.ceil(64 / factor))
    start = (64 - cut) // 2
    large = ndimage.zoom(values[start : start + cut, start : start + cut], (factor, factor, 1), order=1)
    trim = (len(large) - 64) // 2
    np.testing.assert_allclose(_zoomed(values, factor), large[trim : trim + 64, trim : trim + 64], atol=1e-12)


def test_zoom_blur__leaves_the_middle_sharper_than_the_rim() -> None:
    stripes = np.repeat(np.tile(np.array([0, 0, 255, 255], np.uint8), 32)[None, :, None], 128, 0).repeat(3, 2)
    found = corrupt(stripes, "zoom_blur", 3, rng()).astype(float)
    assert found[:, 60:68].std() > 2 * found[:, 4:20].std()


def test_fog__is_clouds_that_differ_and_keeps_black_and_white_apart() -> None:
    clouds = _plasma(64, 2.0, rng())
    assert (clouds.shape, clouds.min(), clouds.max()) == ((64, 64), 0, 1)
    assert np.abs(np.diff(clouds, axis=0)).mean() < 0.05  # they are smooth
    rough = _plasma(64, 1.4, rng())
    assert np.abs(np.diff(rough, axis=0)).mean() > np.abs(np.diff(clouds, axis=0)).mean()
    found = corrupt(grey(255, 40), "fog", 5, rng())
    assert found.max() <= 255
    assert np.ptp(found) > 50


def test_fog__of_images_that_are_not_square() -> None:
    assert corrupt(np.zeros((33, 70, 3), np.uint8), "fog", 1, rng()).shape == (33, 70, 3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness__is_the_value_of_hsv(severity: int, picture: np.ndarray) -> None:
    black = picture.copy()
    black[:8] = 0
    hsv = rgb_to_hsv(black / 255)
    hsv[..., 2] = np.minimum(hsv[..., 2] + strength("brightness", severity), 1)
    found = corrupt(black, "brightness", severity, rng()).astype(int)
    assert np.abs(found - (hsv_to_rgb(hsv) * 255).astype(int)).max() <= 1


def test_contrast__shrinks_what_differs_from_the_mean_of_each_channel(picture: np.ndarray) -> None:
    found = corrupt(picture, "contrast", 1, rng()).astype(float)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), picture.mean(axis=(0, 1)) - 0.5, atol=0.2)
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.4 * picture.std(axis=(0, 1)), rtol=0.02)


def test_elastic__of_no_strength_changes_nothing(picture: np.ndarray) -> None:
    found = _elastic_transform(picture, (0.0, 0.01, 0.0), rng())
    assert np.abs(found.astype(int) - picture).max() <= 1


def test_elastic__moves_the_corners_of_a_square() -> None:
    matrix, offset = _random_affine(60, 90, 5.0, rng(3))
    moved = rng(3).uniform(-5, 5, size=(3, 2))
    corners = np.array([30, 45]) + 20 * np.array([[1, 1], [-1, 1], [-1, -1]])
    np.testing.assert_allclose((corners + moved) @ matrix.T + offset, corners, atol=1e-9)


def test_pixelate__is_blocks() -> None:
    noise = rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = corrupt(noise, "pixelate", 5, rng())  # a quarter
    np.testing.assert_array_equal(found, found[::4, ::4].repeat(4, 0).repeat(4, 1))
    assert abs(float(found[0, 0, 0]) - noise[:4, :4, 0].mean()) <= 1


def test_jpeg_compression__is_pillows(picture: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=7)
    np.testing.assert_array_equal(corrupt(picture, "jpeg_compression", 5, rng()), np.asarray(Image.open(buffer)))


def test_corrupt__without_scipy_names_it(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    monkeypatch.delattr(sys.modules["scipy"], "ndimage")
    with pytest.raises(BenchError, match=r"needs scipy: pip install 'mcbeit\[robustness\]'"):
        corrupt(picture, "defocus_blur", 1, rng())
