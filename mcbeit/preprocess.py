"""Preprocessing: how an image file becomes model input, in PIL and numpy alone (no torch).

Evaluation, export, service and benchmark all use this one definition, so that a file gives the same bits everywhere.
Training reads files with the same `decode` and then makes its own views (`augment.py`); large JPEGs it lets shrink.
"""

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import Field, PositiveFloat, model_validator

from mcbeit.config import Config
from mcbeit.errors import ImageError

COLOURS = 3  # channels of an ordinary image: red, green, blue
MAX_PIXELS = 2**30 // 12  # 89 million: the size from which Pillow, too, speaks of a decompression bomb
RULES_VERSION = 1  # of everything that is not an option of `Preprocess`
MAX_ASPECT = 32  # a longer image is cut to its middle first, or a 1 x 100,000 image would fill the memory

Source = bytes | str | Path
Interpolation = Literal["bicubic", "bilinear", "lanczos", "nearest"]
Shrink = Callable[[int, int], int]  # of width and height when upright; the factor by which a decoder may shrink
Pixels = UInt8[np.ndarray, "height width 3"]

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = {
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
}
_WARNINGS_LOCK = threading.Lock()


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
        from mcbeit.multichannel import as_planes  # which reads ordinary files with this module

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


def decode(source: Source, *, max_pixels: int = MAX_PIXELS, shrink: Shrink | None = None) -> Image.Image:
    """Decode a JPEG, PNG, WebP, GIF, BMP or TIFF file, given as bytes or path; the first frame of an animation.

    The result is always RGB of 8 bits, upright by the EXIF orientation, without metadata; for the colours see
    `to_rgb`. Raises ImageError with one short reason if the file cannot be read, is no such image, is truncated or
    corrupt, or has more than `max_pixels` pixels (found in the header, before they are decoded). Never warns. May be
    called from many threads.

    `shrink` is called with the size before pixels are decoded and says by which factor they may be fewer: a JPEG is
    then decoded at 1/2, 1/4 or 1/8 of its size, which is several times as fast. For training only.
    """
    if isinstance(source, bytes):
        return _decode(source, max_pixels, shrink)
    try:
        return _decode(Path(source).read_bytes(), max_pixels, shrink)
    except OSError as error:
        raise ImageError(f"{source}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(f"{source}: {error}") from error.__cause__


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright 8-bit RGB without metadata.

    Alpha is composited on white. 16-bit grey is divided by 257 and rounded; 16-bit colour has lost its low byte in
    Pillow already. 32-bit grey with values above 255 is taken as 16-bit, float grey in [0, 1] is multiplied by 255;
    beyond these ranges the lowest value becomes black and the highest white. ICC profiles are ignored.
    Raises ImageError if the image has no pixels; errors of Pillow pass.
    """
    if 0 in image.size:
        raise ImageError(f"the image has no pixels: width {image.width}, height {image.height}")
    image.load()
    rgb = _convert(image)
    turned = upright(rgb, _orientation(image))
    turned.info = {}
    return turned


def upright(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """The image turned and mirrored by its own EXIF orientation, or by another's."""
    turn = _TURNS.get(_orientation(image) if orientation is None else orientation)
    return image if turn is None else image.transpose(turn)


class _Jpeg(JpegImageFile):
    """A JPEG opened without a look at the EXIF tags, in which Pillow searches for the dpi and warns of broken ones."""

    def _read_dpi_from_exif(self) -> None:
        pass


class _Tiff(TiffImageFile):
    """A TIFF that keeps quiet about broken tags when Pillow reads them all once more after the pixels."""

    def load_end(self) -> None:
        with no_warnings():
            super().load_end()


_PLUGINS: dict[type[ImageFile], tuple[bytes, ...]] = {
    _Jpeg: (b"\xff\xd8\xff",),
    PngImageFile: (b"\x89PNG\r\n\x1a\n",),
    WebPImageFile: (b"WEBP",),
    GifImageFile: (b"GIF87a", b"GIF89a"),
    BmpImageFile: (b"BM",),
    _Tiff: (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_KNOWN_RANGES = {"u": (65535.0,), "i": (255.0, 65535.0), "f": (1.0,)}  # by kind of dtype: uint16, int32, float32


def format_of(data: bytes) -> str:
    """The kind of an image file by its first bytes: JPEG, PNG and so on; NPY if it is none of the ordinary ones."""
    plugin = _plugin(data)
    return "NPY" if plugin is None else str(plugin.format)


def _plugin(data: bytes) -> type[ImageFile] | None:
    start = data[8:12] if data.startswith(b"RIFF") else data[:8]
    return next((plugin for plugin, magics in _PLUGINS.items() if start.startswith(magics)), None)


def _rgb(image: Source | Image.Image | Pixels, *, shrink: Shrink | None) -> Image.Image:
    if isinstance(image, bytes | str | Path):
        return decode(image, shrink=shrink)
    return to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image)


def _cut_middle(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    left, top = max(image.width - longest, 0) // 2, max(image.height - longest, 0) // 2
    return image.crop((left, top, left + min(image.width, longest), top + min(image.height, longest)))


def _decode(data: bytes, max_pixels: int, shrink: Shrink | None) -> Image.Image:
    image = open_image(data, max_pixels)
    factor = 1 if shrink is None else shrink(*_upright_size(image))
    try:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        return to_rgb(image)
    except Exception as error:
        raise ImageError(f"the {image.format} data is truncated or corrupt") from error


def open_image(data: bytes, max_pixels: int) -> ImageFile:
    """A file whose header alone has been read. Raises ImageError as `decode` does."""
    if not data:
        raise ImageError("the file is empty")
    plugin = _plugin(data)
    if plugin is None:
        raise ImageError("not a JPEG, PNG, WebP, GIF, BMP or TIFF image")
    # Pillow may fail in any way on bytes from anywhere, with memory addresses in the message
    try:
        image = _open(plugin, data)
    except Image.DecompressionBombError as error:
        raise ImageError("far too many pixels: a decompression bomb") from error
    except Exception as error:
        if str(error) == "unknown pixel mode":
            raise ImageError("the TIFF file has other channels or numbers than an ordinary image") from error
        raise ImageError(f"the {plugin.format} header is corrupt") from error
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width} x {image.height} pixels are more than {max_pixels}")
    return image


def _open(plugin: type[ImageFile], data: bytes) -> ImageFile:
    """Read the header. Not by `Image.open`, which warns of large images before one can look at their size."""
    may_warn = plugin in (_Tiff, GifImageFile) or (plugin is PngImageFile and b"acTL" in data)
    with no_warnings() if may_warn else nullcontext():
        return plugin(io.BytesIO(data))


@contextmanager
def no_warnings() -> Iterator[None]:
    """Switch warnings off, which Python does for all threads, so: briefly, and not for the common formats."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright_size(image: ImageFile) -> tuple[int, int]:
    is_turned = _TURNS.get(_orientation(image)) in _QUARTER_TURNS
    return (image.height, image.width) if is_turned else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation as in the file; 1, upright, if there is none or the block is broken."""
    exif = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = ">" if exif.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for offset in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, offset)
            if tag == _ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1


def _convert(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _grey(image)
    elif image.mode == "La":
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    return Image.fromarray(_scale_to_8_bit(np.asarray(image)))


def _scale_to_8_bit(values: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Map the first range that holds all values to [0, 255]: 0..65535 for 16-bit integers, 0..255 or 0..65535 for
    32-bit integers, 0..1 for floats, and if that fails the range of the values themselves. What is not finite turns 0.
    """
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    known = [width for width in _KNOWN_RANGES[values.dtype.kind] if low >= 0 and high <= width]
    start, width = (0.0, known[0]) if known else (low, high - low or 1.0)
    above = np.subtract(np.where(finite, values, start), start, dtype=np.float64)
    return np.rint(above * (255 / width)).astype(np.uint8)
