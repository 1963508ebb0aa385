"""Preprocessing: how an image file becomes model input, in PIL and numpy alone (no torch).

Evaluation, export, service and benchmark all use this one definition, so that a file gives the same bits everywhere.
Training reads files with the same `decode` (`image_files.py`) and then makes its own views (`augment.py`); large JPEGs
it lets shrink.
"""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from pydantic import Field, PositiveFloat, model_validator

from mcbeit.config import Config
from mcbeit.image_files import COLOURS, Shrink, Source, decode, to_rgb
from mcbeit.multichannel import as_planes

RULES_VERSION = 1  # of everything that is not an option of `Preprocess`
MAX_ASPECT = 32  # a longer image is cut to its middle first, or a 1 x 100,000 image would fill the memory

Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
Pixels = UInt8[np.ndarray, "height width 3"]


class Preprocess(Config):
    """From an image to model input: resize by one rule, crop the centre, normalise."""

    image_size: int = Field(224, ge=1)  # pixels: height and width of the result
    resize: Literal["shorter-side", "squash"] = "shorter-side"  # squash: ignore the aspect, keep the whole image
    crop_fraction: float = Field(0.875, gt=0, le=1)  # the shorter side becomes int(image_size / crop_fraction)
    interpolation: Interpolation = "bicubic"  # all but nearest antialias
    jpeg_draft: bool = False  # decode large JPEGs at 1/2, 1/4 or 1/8, if twice the pixels remain: faster, other numbers
    # red, green, blue, of values in [0, 1]; or of every channel, where data.channels is not 3
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), min_length=1)
    std: tuple[PositiveFloat, ...] = Field((0.229, 0.224, 0.225), min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> "Preprocess":
        if self.resize == "squash" and self.crop_fraction != 1:
            raise ValueError(f"resize squash keeps the whole image: set crop_fraction to 1, found {self.crop_fraction}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need a number per channel each, found {len(self.mean)} and {len(self.std)}")
        return self

    @property
    def channels(self) -> int:
        """The number of channels: 3 are the colours of ordinary images."""
        return len(self.mean)

    def pixels(self, image: Source | Image.Image | np.ndarray) -> Shaped[np.ndarray, "size size channel"]:
        """The resized and cropped image: what the exported model takes. A small image is scaled up by the same rule.

        The rule is that of torchvision's `Resize(int)` and `CenterCrop` on PIL images, to the bit, as long as no side
        is more than 32 times the other. Colours are uint8. Other numbers of channels are float32 and resized one by
        one; see `multichannel.py`. Raises ImageError as `decode` does.
        """
        if self.channels == COLOURS:
            return self._fit(_rgb(image, shrink=self._draft if self.jpeg_draft else None))
        planes = np.moveaxis(as_planes(image, self.channels), 2, 0)
        return np.stack([self._fit(Image.fromarray(plane)) for plane in planes], axis=2)

    def normalise(self, pixels: Shaped[np.ndarray, "*batch channel"]) -> Float32[np.ndarray, "*batch channel"]:
        """`(pixels / 255 - mean) / std`, every step in float32, the channel last; floats are not divided by 255."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        values = pixels.astype(np.float32)
        return ((values / np.float32(255) if pixels.dtype == np.uint8 else values) - mean) / std

    def describe(self) -> dict[str, object]:
        """Every rule by name, those without an option too: what another program must do to get the same numbers."""
        return {
            "version": RULES_VERSION,
            **self.model_dump(mode="json"),
            "formats": ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"],
            "frame": "first",
            "orientation": "EXIF orientation applied",
            "color": "RGB of 8 bits; ICC profiles ignored",
            "alpha": "composited on white",
            "grey_16_bit": "divided by 257 and rounded",
            "longest_aspect": MAX_ASPECT,
            "resized_to": int(self.image_size / self.crop_fraction),
            "antialias": self.interpolation != "nearest",
            "crop": "centre",
            "layout": "NHWC",
            "rescale": 1 / 255,
        }

    def _draft(self, width: int, height: int) -> int:
        """By how much a JPEG may shrink so that resizing still has twice the pixels to average over."""
        return min(width, height) // (2 * int(self.image_size / self.crop_fraction)) or 1

    def _fit(self, image: Image.Image) -> np.ndarray:
        if self.resize == "shorter-side":
            image = _cut_middle(image)
        width, height = self._resized(*image.size)
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - self.image_size) / 2), round((height - self.image_size) / 2)
        return np.array(image.crop((left, top, left + self.image_size, top + self.image_size)))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        short = int(self.image_size / self.crop_fraction)  # cut off, not rounded: so do BEiT, MAE and timm
        if self.resize == "squash":
            return short, short
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)


def _rgb(image: Source | Image.Image | Pixels, *, shrink: Shrink | None) -> Image.Image:
    if isinstance(image, bytes | str | Path):
        return decode(image, shrink=shrink)
    return to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image)


def _cut_middle(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    left, top = max(image.width - longest, 0) // 2, max(image.height - longest, 0) // 2
    return image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))
