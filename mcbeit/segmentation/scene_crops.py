"""What training does to an image and its label map: resize, crop, flip, change colours, normalise, pad.

The order and the numbers are those of the published ADE20K runs; every random choice comes from the generator that is
passed in. Images are resized bilinearly without antialiasing, as they were there.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from mcbeit.augment import CropConfig, normalise
from mcbeit.config import Config
from mcbeit.data import Loaded, ViewDataset
from mcbeit.errors import ImageError
from mcbeit.image_files import decode
from mcbeit.preprocess import Preprocess
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.scenes import SceneSource

MAX_TRIES = 10  # crops that are drawn until no class fills too much of one
MAX_BRIGHTNESS = 32  # of 255, either way
FACTORS = (0.5, 1.5)  # of contrast and of saturation
MAX_HUE = 18 / 180  # of a full turn, either way
NO_CROP = CropConfig()  # crops are drawn here


class SceneConfig(Config):
    """How large images are seen, and what happens to them in training."""

    # the largest size: the image is scaled, its aspect kept, until its long or its short side reaches one of these
    long_side: int = Field(2048, ge=1)
    short_side: int = Field(512, ge=1)
    scale: tuple[float, float] = (0.5, 2.0)  # of that size, in training; uniform
    max_class_share: float = Field(0.75, gt=0, le=1)  # of the labelled pixels of a crop; above, another one is drawn
    flip: float = Field(0.5, ge=0, le=1)
    distort_colors: bool = True  # brightness, contrast, saturation and hue, each in half of the images

    @model_validator(mode="after")
    def _ordered(self) -> "SceneConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scenes.scale must be ordered and positive, found {list(self.scale)}")
        if self.short_side > self.long_side:
            raise ValueError(f"scenes.short_side={self.short_side} is more than scenes.long_side={self.long_side}")
        return self

    def size_at(self, height: int, width: int, factor: float = 1.0) -> tuple[int, int]:
        """The height and width that an image is scaled to."""
        long, short = int(self.long_side * factor), int(self.short_side * factor)
        scale = min(long / max(height, width), short / min(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


class SceneDataset(ViewDataset):
    """Scenes as segmentation learns from them: the normalised crop, and its label map as a second view."""

    source: SceneSource

    def __init__(
        self, source: SceneSource, *, seed: int, scenes: SceneConfig, preprocess: Preprocess, num_dice: int = 0
    ) -> None:
        super().__init__(source, seed=seed, crop=NO_CROP, views=(), num_dice=num_dice)
        self.scenes, self.preprocess = scenes, preprocess

    @property
    def sample_bytes(self) -> int:
        """The size of both views."""
        return (4 * self.source.channels + 1) * self.preprocess.image_size**2

    def load(self, index: int, rng: np.random.Generator) -> Loaded:
        """See `ViewDataset`."""
        pixels, labels = self.crop_of(index, rng)
        image = normalise(pixels[None], self.preprocess.mean, self.preprocess.std)[0]
        size = self.preprocess.image_size
        return Loaded([padded(image, size, [0.0] * len(image)), padded(labels, size, [IGNORED])], {})

    def crop_of(
        self, index: int, rng: np.random.Generator
    ) -> tuple[UInt8[Tensor, "3 height width"], UInt8[Tensor, "1 height width"]]:
        """A random crop of a scene as it is learned from, neither normalised nor padded, and its labels."""
        pixels, labels = random_crop(*read_scene(self.source, index), self.preprocess.image_size, self.scenes, rng)
        if self.scenes.distort_colors:
            pixels = distort_colors(pixels, rng)
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels)[None]


def read_scene(source: SceneSource, index: int) -> tuple[UInt8[np.ndarray, "height width 3"], np.ndarray]:
    """An image and its label map. Raises ImageError if they cannot be decoded or are of different sizes."""
    pixels, labels = np.array(decode(source.read(index))), source.labels_of(index)
    if pixels.shape[:2] != labels.shape:
        raise ImageError(
            f"the image has {pixels.shape[1]} x {pixels.shape[0]} pixels, its label map "
            f"{labels.shape[1]} x {labels.shape[0]} ({source.map_path(index)})"
        )
    return pixels, labels


def random_crop(
    pixels: UInt8[np.ndarray, "height width 3"],
    labels: UInt8[np.ndarray, "height width"],
    size: int,
    config: SceneConfig,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Scale by a random factor, cut out a square in which no class fills too much, flip; smaller images stay whole."""
    height, width = config.size_at(labels.shape[0], labels.shape[1], rng.uniform(*config.scale))
    pixels, labels = scaled_pixels(pixels, height, width), scaled_labels(labels, height, width)
    for _ in range(MAX_TRIES):
        top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in (height, width))
        window = (slice(top, top + size), slice(left, left + size))
        if not _is_filled_by_one(labels[window], config.max_class_share):
            break
    pixels, labels = pixels[window], labels[window]
    if rng.random() < config.flip:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(pixels), np.ascontiguousarray(labels)


def _is_filled_by_one(labels: UInt8[np.ndarray, "height width"], max_share: float) -> bool:
    """Whether a class has too much of what is labelled; a single class always has, unless all of it is allowed."""
    if max_share == 1:
        return False
    counts = np.bincount(labels[labels != IGNORED].ravel())
    return bool(np.count_nonzero(counts) <= 1 or counts.max() / counts.sum() >= max_share)


def scaled_pixels(pixels: UInt8[np.ndarray, "a b 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Bilinear, pixel centres aligned, no antialiasing."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return F.interpolate(image, size=(height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()


def scaled_labels(labels: UInt8[np.ndarray, "a b"], height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    """The label at the nearest place."""
    if labels.shape == (height, width):
        return labels
    return F.interpolate(torch.from_numpy(labels)[None, None], size=(height, width), mode="nearest")[0, 0].numpy()


def distort_colors(
    pixels: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Change brightness, contrast, saturation and hue, each with probability 1/2; contrast first or last."""
    changes, contrast_first = rng.random(4) < 0.5, rng.random() < 0.5
    shift, contrast = rng.uniform(-MAX_BRIGHTNESS, MAX_BRIGHTNESS), rng.uniform(*FACTORS)
    saturation, turn = rng.uniform(*FACTORS), rng.uniform(-MAX_HUE, MAX_HUE)
    if changes[0]:
        pixels = _clipped(pixels.astype(np.float32) + shift)
    if changes[1] and contrast_first:
        pixels = _clipped(pixels * np.float32(contrast))
    if changes[2] or changes[3]:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        if changes[2]:
            hsv[..., 1] = _clipped(hsv[..., 1] * np.float32(saturation))
        if changes[3]:
            hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # wraps around as hues do
        pixels = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    if changes[1] and not contrast_first:
        pixels = _clipped(pixels * np.float32(contrast))
    return pixels


def _clipped(values: Float[np.ndarray, "*axes"]) -> UInt8[np.ndarray, "*axes"]:
    return np.clip(values, 0, 255).astype(np.uint8)


def padded(
    view: Shaped[Tensor, "channel height width"], size: int, values: Sequence[float | int]
) -> Shaped[Tensor, "channel height_ width_"]:
    """Filled up at the right and at the bottom to `size` at least; `values` are those of the channels."""
    height, width = view.shape[-2:]
    if height >= size and width >= size:
        return view
    canvas = torch.tensor(values).to(view)[:, None, None].repeat(1, max(height, size), max(width, size))
    canvas[:, :height, :width] = view
    return canvas
