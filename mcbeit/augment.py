"""Training views on torch's uint8 resizing: one random crop, rendered once per view.

Evaluation, export and service resize with PIL (`preprocess.py`); `tests/test_augment.py` states how far they differ.
Every random choice is drawn from the generator that is passed in.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_saturation

from mcbeit.config import Config
from mcbeit.image_files import COLOURS, decode
from mcbeit.multichannel import Planes, decode_planes
from mcbeit.preprocess import Interpolation


class CropConfig(Config):
    """The random crop that all views of an image share, and what happens to its colours."""

    scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height, log-uniform
    flip: float = Field(0.5, ge=0, le=1)  # probability of a horizontal flip
    color_jitter: float = Field(0.0, ge=0, lt=1)  # brightness, contrast and saturation in 1 +- this; mc-BEiT: 0

    @model_validator(mode="after")
    def _ordered(self) -> "CropConfig":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop.scale must be ordered and within (0, 1], found {list(self.scale)}")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"crop.aspect must be ordered and positive, found {list(self.aspect)}")
        return self


class View(NamedTuple):
    """How a crop is rendered: a square of `size` pixels."""

    size: int
    interpolation: Interpolation


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom, as Pillow has them."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def shrunk(self, factor: int) -> "Box":
        """The same crop of an image whose sides are so many times shorter."""
        return Box(*(side // factor for side in self))


SPARE = 2  # pixels that a shrunk crop keeps for each pixel of its largest view


def draw_box(height: int, width: int, config: CropConfig, rng: np.random.Generator) -> Box:
    """Draw a crop as Inception does: ten tries for area and aspect, then the largest central crop of legal aspect."""
    low, high = (math.log(bound) for bound in config.aspect)
    for _ in range(10):
        area = height * width * rng.uniform(*config.scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = int(rng.integers(height - crop_height + 1)), int(rng.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    crop_width = min(width, max(1, round(height * config.aspect[1])))
    crop_height = min(height, max(1, round(width / config.aspect[0])))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def read_views(
    data: bytes, config: CropConfig, views: tuple[View, ...], rng: np.random.Generator, channels: int = COLOURS
) -> list[Shaped[Tensor, "channel size size"]]:
    """`two_views` of an image file. A large JPEG is decoded no finer than twice the largest view needs of its crop.

    Other numbers of channels than 3 give float32 views. Raises ImageError as `decode` does.
    """
    if channels != COLOURS:
        return _views_of_planes(decode_planes(data, channels), config, views, rng)
    image, box = read_crop(data, config, max(view.size for view in views), rng)
    return _views_of(image, box, config, views, rng)


def read_crop(data: bytes, config: CropConfig, size: int, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """An image file, and a crop of it that is to be rendered in `size` pixels: a large JPEG may come smaller."""
    drawn: list[tuple[Box, int]] = []

    def shrink(width: int, height: int) -> int:
        box = draw_box(height, width, config, rng)
        drawn.append((box, width))
        return min(box.height, box.width) // (SPARE * size)

    image = decode(data, shrink=shrink)
    ((box, width),) = drawn
    return image, box.shrunk(round(width / image.width))


def two_views(
    image: Image.Image, config: CropConfig, views: tuple[View, ...], rng: np.random.Generator
) -> list[UInt8[Tensor, "3 size size"]]:
    """Draw one crop, flip and colour change of an RGB image, and render each view of it (any number, usually two)."""
    return _views_of(image, draw_box(image.height, image.width, config, rng), config, views, rng)


def _views_of(
    image: Image.Image, box: Box, config: CropConfig, views: tuple[View, ...], rng: np.random.Generator
) -> list[Tensor]:
    if config.color_jitter:
        image = jitter(image, config.color_jitter, rng)
    flip = rng.random() < config.flip
    return _render_all(np.array(image.crop(box.edges)), views, flip)


def _views_of_planes(
    planes: Planes, config: CropConfig, views: tuple[View, ...], rng: np.random.Generator
) -> list[Float[Tensor, "channel size size"]]:
    box = draw_box(planes.shape[0], planes.shape[1], config, rng)
    flip = rng.random() < config.flip
    cropped = planes[box.top : box.top + box.height, box.left : box.left + box.width]
    return _render_all(np.ascontiguousarray(cropped), views, flip)


def _render_all(cropped: np.ndarray, views: tuple[View, ...], flip: bool) -> list[Tensor]:
    # channels last in memory, which is the fast path of resizing
    crop = torch.from_numpy(cropped).permute(2, 0, 1)[None]
    return [_render(crop, view, flip) for view in views]


def _render(crop: Tensor, view: View, flip: bool) -> Tensor:
    is_nearest = view.interpolation == "nearest"
    mode = "nearest-exact" if is_nearest else view.interpolation  # torch's "nearest" shifts by half a pixel
    rendered = F.interpolate(crop, size=(view.size, view.size), mode=mode, antialias=not is_nearest)[0]
    # flipped last: the same picture as flipping first, on far fewer pixels
    return rendered.flip(-1) if flip else rendered


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in any order, each by a factor in 1 +- `strength`."""
    changes = [adjust_brightness, adjust_contrast, adjust_saturation]
    for index in rng.permutation(len(changes)):
        image = changes[index](image, rng.uniform(1 - strength, 1 + strength))
    return image


def normalise(
    pixels: Shaped[Tensor, "batch channel height width"],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(pixels / 255 - mean) / std per channel, on the device where the pixels are; floats are not divided by 255."""
    white = 255.0 if pixels.dtype == torch.uint8 else 1.0
    scale, shift = _affine(tuple(mean), tuple(std), white, pixels.device)
    return (pixels * scale - shift).to(dtype)


@functools.cache
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], white: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factor and offset of `normalise`, kept: copying numbers to a GPU makes the host wait for it."""
    scale = torch.tensor([1 / (white * s) for s in std], device=device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device).view(-1, 1, 1)
    return scale, shift
