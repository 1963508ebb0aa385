"""Common corruptions of photographs, in five severities, in the manner of ImageNet-C (Hendrycks & Dietterich, 2019).

Twelve of its fifteen, with the strengths of its code, which are meant for 224 pixels. Left out are motion blur and
snow, which it makes by ImageMagick, and frost, for which it has photographs. As there, numbers are cut off to 8 bits
rather than rounded, glass copies neighbours rather than swapping them, and 244 pixels are the unit of elastic
strengths. But random numbers are others, and ImageNet-C keeps its images as JPEG: nothing here may be called so.
"""

import io
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from mcbeit.errors import BenchError

CorruptionName = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "zoom_blur",
    "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip
Family = Literal["noise", "blur", "weather", "digital"]
CORRUPTION_NAMES: tuple[CorruptionName, ...] = get_args(CorruptionName)
LEFT_OUT = ("motion_blur", "snow", "frost")  # of the fifteen of ImageNet-C
VERSION = 1  # of everything here: a change that may change pixels raises it
SEVERITIES = (1, 2, 3, 4, 5)

Pixels = UInt8[np.ndarray, "height width 3"]
Values = Float[np.ndarray, "height width 3"]
Shift = Float[np.ndarray, "height width"]
Random = np.random.Generator


class Corruption(NamedTuple):
    """What is done to an image, and how strongly by severity."""

    family: Family
    strengths: tuple[Any, ...]
    apply: Callable[[Pixels, Any, Random], Pixels]


def corrupt(pixels: Pixels, name: CorruptionName, severity: int, rng: Random) -> Pixels:
    """The corrupted image, of the same size. Raises BenchError without scipy, which some of them need."""
    corruption = CORRUPTIONS[name]
    return corruption.apply(pixels, corruption.strengths[severity - 1], rng)


def ndimage() -> ModuleType:
    """`scipy.ndimage`. Raises BenchError if it is not installed."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise BenchError("corrupting images needs scipy: pip install 'mcbeit[robustness]'") from error
    return ndimage


def _gaussian_noise(pixels: Pixels, deviation: float, rng: Random) -> Pixels:
    return _cut_off(pixels / 255 + rng.normal(scale=deviation, size=pixels.shape))


def _shot_noise(pixels: Pixels, photons: float, rng: Random) -> Pixels:
    return _cut_off(rng.poisson(pixels / 255 * photons) / photons)


def _impulse_noise(pixels: Pixels, share: float, rng: Random) -> Pixels:
    is_hit, is_salt = rng.random(pixels.shape) <= share, rng.random(pixels.shape) <= 0.5
    return np.where(is_hit, np.where(is_salt, np.uint8(255), np.uint8(0)), pixels)


def _defocus_blur(pixels: Pixels, strength: tuple[int, float], rng: Random) -> Pixels:
    """A disc of some radius with a softened rim."""
    radius, softness = strength
    reach = max(radius, 8)
    steps = np.arange(-reach, reach + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    disc = ndimage().gaussian_filter(disc / disc.sum(), softness, radius=1 if radius <= 8 else 2, mode="mirror")
    return _cut_off(ndimage().convolve(pixels / 255, disc[..., None], mode="mirror"))


def _glass_blur(pixels: Pixels, strength: tuple[float, int, int], rng: Random) -> Pixels:
    """Blurred, pixels replaced by neighbours several times over, and blurred again."""
    deviation, distance, times = strength
    height, width = pixels.shape[:2]
    seen = _cut_off(_blurred(pixels / 255, deviation))
    for _ in range(times):
        seen = seen.reshape(-1, 3)[_scattered(height, width, distance, rng)].reshape(pixels.shape)
    return _cut_off(_blurred(seen / 255, deviation))


def _scattered(height: int, width: int, distance: int, rng: Random) -> Int64[np.ndarray, " pixel"]:
    """Whose colour each pixel gets, if from the last pixel to the first each takes that of a neighbour at that time.

    A neighbour further on has already taken its own: such chains are followed to their ends, twice as far each time.
    """
    grid = np.arange(height * width).reshape(height, width)
    inner = (slice(distance + 1, height - distance + 1), slice(distance + 1, width - distance + 1))
    down, right = rng.integers(-distance, distance, size=(2, *grid[inner].shape))
    places, takes, is_changed = grid.ravel(), grid.copy(), np.zeros(grid.size, bool)
    takes[inner] += down * width + right
    is_changed[grid[inner]] = True
    origin = takes.ravel()
    ends = np.where(is_changed[origin] & (origin > places), origin, places)
    while not np.array_equal(further := ends[ends], ends):
        ends = further
    return origin[ends]


def _zoom_blur(pixels: Pixels, zooms: tuple[float, float], rng: Random) -> Pixels:
    """The mean of the image and of its middle at growing sizes."""
    end, step = zooms
    values = pixels / 255
    factors = np.arange(1, end, step)
    return _cut_off((values + sum(_zoomed(values, factor) for factor in factors)) / (len(factors) + 1))


def _zoomed(values: Values, factor: float) -> Values:
    """The middle of the image at its size, bilinear."""
    for axis, size in enumerate(values.shape[:2]):
        cut = int(np.ceil(size / factor))
        large = round(cut * factor)
        places = (np.arange(size) + (large - size) // 2) * (cut - 1) / max(large - 1, 1) + (size - cut) // 2
        low = places.astype(int)
        weight = (places - low).reshape(-1, *[1] * (2 - axis))
        rows, following = (values.take(np.minimum(at, size - 1), axis=axis) for at in (low, low + 1))
        values = rows + weight * (following - rows)
    return values


def _fog(pixels: Pixels, strength: tuple[float, float], rng: Random) -> Pixels:
    thickness, decay = strength
    height, width = pixels.shape[:2]
    values = pixels / 255
    clouds = _plasma(1 << (max(height, width) - 1).bit_length(), decay, rng)[:height, :width, None]
    brightest = values.max()
    return _cut_off((values + thickness * clouds) * brightest / (brightest + thickness))


def _plasma(size: int, decay: float, rng: Random) -> Float[np.ndarray, "size size"]:
    """Clouds with values in [0, 1] by the diamond-square algorithm on a torus; the size is a power of 2."""
    heights, step, spread = np.zeros((size, size)), size, 100.0
    while step > 1:
        half = step // 2
        corners, centres = heights[::step, ::step], heights[half::step, half::step]

        def between(*four: np.ndarray, spread: float = spread) -> np.ndarray:
            return sum(four) / 4 + spread**2 * rng.uniform(-1, 1, four[0].shape)

        right, below = np.roll(corners, -1, axis=1), np.roll(corners, -1, axis=0)
        centres[:] = between(corners, right, below, np.roll(right, -1, axis=0))
        heights[::step, half::step] = between(corners, right, centres, np.roll(centres, 1, axis=0))
        heights[half::step, ::step] = between(corners, below, centres, np.roll(centres, 1, axis=1))
        step, spread = half, spread / decay
    heights -= heights.min()
    return heights / heights.max()


def _brightness(pixels: Pixels, more: float, rng: Random) -> Pixels:
    """A larger value of hue, saturation and value."""
    values = pixels / 255
    old = values.max(axis=2, keepdims=True)
    new = np.minimum(old + more, 1)
    return _cut_off(np.where(old > 0, values * new / np.where(old > 0, old, 1), new))


def _contrast(pixels: Pixels, share: float, rng: Random) -> Pixels:
    values = pixels / 255
    mean = values.mean(axis=(0, 1))
    return _cut_off((values - mean) * share + mean)


def _elastic_transform(pixels: Pixels, strength: tuple[float, float, float], rng: Random) -> Pixels:
    """A random affine map, and then a smooth random displacement of every pixel."""
    strongest, smoothness, corner_shift = (244 * part for part in strength)
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    matrix, offset = _random_affine(height, width, corner_shift, rng)
    moved = np.tensordot(matrix, np.stack([rows, columns]), axes=1) + offset[:, None, None]
    values = _sampled(pixels / 255, moved[0], moved[1], mode="mirror")
    down, right = (strongest * _smooth_noise(height, width, smoothness, rng) for _ in range(2))
    return _cut_off(_sampled(values, rows + down, columns + right, mode="reflect"))


def _random_affine(
    height: int, width: int, most: float, rng: Random
) -> tuple[Float[np.ndarray, "2 2"], Float[np.ndarray, " 2"]]:
    """From pixels of the result to pixels of the image: three corners of a square in the middle are moved."""
    middle, side = np.array([height // 2, width // 2], np.float64), min(height, width) // 3
    corners = middle + side * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = corners + rng.uniform(-most, most, size=corners.shape)
    found = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    return found[:2].T, found[2]


def _smooth_noise(height: int, width: int, deviation: float, rng: Random) -> Shift:
    return ndimage().gaussian_filter(rng.uniform(-1, 1, (height, width)), deviation, mode="reflect", truncate=3)


def _sampled(values: Values, rows: Shift, columns: Shift, *, mode: str) -> Values:
    """Bilinear values between pixels."""
    channels = [ndimage().map_coordinates(values[..., i], [rows, columns], order=1, mode=mode) for i in range(3)]
    return np.stack(channels, axis=2)


def _pixelate(pixels: Pixels, share: float, rng: Random) -> Pixels:
    image = Image.fromarray(pixels)
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX))


def _jpeg_compression(pixels: Pixels, quality: int, rng: Random) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _blurred(values: Values, deviation: float) -> Values:
    return ndimage().gaussian_filter(values, (deviation, deviation, 0), mode="nearest")


def _cut_off(values: Values) -> Pixels:
    """From [0, 1] to 8 bits."""
    return (values.clip(0, 1) * 255).astype(np.uint8)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption("noise", (0.08, 0.12, 0.18, 0.26, 0.38), _gaussian_noise),
    "shot_noise": Corruption("noise", (60.0, 25.0, 12.0, 5.0, 3.0), _shot_noise),
    "impulse_noise": Corruption("noise", (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise),
    "defocus_blur": Corruption("blur", ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), _defocus_blur),
    "glass_blur": Corruption("blur", ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2)), _glass_blur),
    "zoom_blur": Corruption("blur", ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)), _zoom_blur),
    "fog": Corruption("weather", ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)), _fog),
    "brightness": Corruption("weather", (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    "contrast": Corruption("digital", (0.4, 0.3, 0.2, 0.1, 0.05), _contrast),
    "elastic_transform": Corruption(
        "digital",
        ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
        _elastic_transform,
    ),
    "pixelate": Corruption("digital", (0.6, 0.5, 0.4, 0.3, 0.25), _pixelate),
    "jpeg_compression": Corruption("digital", (25, 18, 15, 10, 7), _jpeg_compression),
}
