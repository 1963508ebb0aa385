"""Large-scale jitter: images are resized by a factor drawn from a wide range, cut or padded to a square, and mirrored.

As in "Simple Copy-Paste" (Ghiasi et al., 2021) and the configs of MIMDet: resized so that the image fits into a square
of 0.1 to 2 times the wanted size, cut from a place on the diagonal of what does not fit, padded at the right and at the
bottom, and only then mirrored. What is marked moves along: polygons as they are, so that masks are drawn once, at their
last size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from mcbeit.config import Config
from mcbeit.detection.rle import decode

PADDING = 128  # grey


class JitterConfig(Config):
    """The range of sizes, and how often images are mirrored."""

    scale: tuple[float, float] = (0.1, 2.0)  # sides of the square that the image is fitted into, in wanted sizes
    flip: float = Field(0.5, ge=0, le=1)  # probability

    @model_validator(mode="after")
    def _ordered(self) -> "JitterConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"jitter.scale must be ordered and positive, found {list(self.scale)}")
        return self


class Placing(NamedTuple):
    """Where an image goes in a square: resized, then cut from a corner on, padded to `size`, then mirrored."""

    height: int  # of the resized image
    width: int
    top: int  # in the resized image, where the square begins
    left: int
    flip: bool
    size: int

    def image(self, image: Image.Image) -> UInt8[Tensor, "3 size size"]:
        """The square of an RGB image."""
        resized = np.asarray(image.resize((self.width, self.height), Image.Resampling.BILINEAR))
        shown = resized[self.top : self.top + self.size, self.left : self.left + self.size]
        square = np.full((self.size, self.size, 3), PADDING, dtype=np.uint8)
        square[: shown.shape[0], : shown.shape[1]] = shown
        return torch.from_numpy(np.ascontiguousarray(self._mirrored(square).transpose(2, 0, 1)))

    def mask(self, segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "size size"]:
        """The mask in the square of an object that was marked in an image of this size; see `rle.decode`."""
        if isinstance(segmentation, list):
            factors = np.array([self.width / width, self.height / height])
            polygons = [self._moved(np.reshape(polygon, (-1, 2)) * factors) for polygon in segmentation]
            return decode([polygon.flatten().tolist() for polygon in polygons], self.size, self.size)
        mask = decode(segmentation, height, width)
        rows = _nearest(range(self.top, min(self.top + self.size, self.height)), height / self.height)
        columns = _nearest(range(self.left, min(self.left + self.size, self.width)), width / self.width)
        square = np.zeros((self.size, self.size), dtype=bool)
        square[: len(rows), : len(columns)] = mask[rows[:, None], columns]
        return self._mirrored(square)

    def masks(self, segmentations: Sequence[Any], height: int, width: int) -> UInt8[np.ndarray, "instance size size"]:
        """The masks of several objects, 0 or 1."""
        masks = np.zeros((len(segmentations), self.size, self.size), dtype=np.uint8)
        for mask, segmentation in zip(masks, segmentations, strict=True):
            mask[:] = self.mask(segmentation, height, width)
        return masks

    def _moved(self, points: np.ndarray) -> np.ndarray:
        points = points - [self.left, self.top]
        return np.stack([self.size - points[:, 0], points[:, 1]], axis=1) if self.flip else points

    def _mirrored(self, square: np.ndarray) -> np.ndarray:
        return square[:, ::-1] if self.flip else square


def draw_placing(height: int, width: int, size: int, config: JitterConfig, rng: np.random.Generator) -> Placing:
    """Draw where an image of `height` x `width` pixels goes in a square of `size`."""
    factor = size * rng.uniform(*config.scale) / max(height, width)
    new_height, new_width = (max(1, round(side * factor)) for side in (height, width))
    along = rng.uniform()  # one number for both axes
    top, left = (round(max(side - size, 0) * along) for side in (new_height, new_width))
    return Placing(new_height, new_width, top, left, bool(rng.random() < config.flip), size)


def fit_placing(height: int, width: int, size: int) -> Placing:
    """How images are tested: the longer side becomes `size`, the rest is padded."""
    factor = size / max(height, width)
    new_height, new_width = (max(1, int(side * factor + 0.5)) for side in (height, width))
    return Placing(new_height, new_width, top=0, left=0, flip=False, size=size)


def boxes_of(masks: UInt8[np.ndarray, "instance height width"]) -> Float32[np.ndarray, "instance 4"]:
    """The smallest boxes around masks: left, top, right, bottom in pixels. Zeros where a mask is empty."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _nearest(places: range, factor: float) -> np.ndarray:
    return ((np.arange(places.start, places.stop) + 0.5) * factor).astype(np.int64)
