"""Images of any number of channels other than three: TIFF and .npy files, and grey or transparent ordinary ones.

The result is always float32, channels last. Unsigned integers are divided by the largest of their type, so they are in
[0, 1] as ordinary images are; signed integers and floats stay what they are; what is not finite turns 0. No torch.
"""

import io
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from mcbeit.errors import DataError, ImageError
from mcbeit.image_files import COLOURS, MAX_PIXELS, Source, decode, open_image, upright

Planes = Float32[np.ndarray, "height width channel"]

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NUMPY = b"\x93NUMPY"
_PLAIN_MODES = {1: ("L", "1", "I", "I;16", "I;16B", "F"), 2: ("LA",), 4: ("RGBA", "CMYK")}


def decode_image(data: bytes, channels: int) -> Image.Image | Planes:
    """An image file as training and evaluation see it: RGB for 3 channels, else planes. Raises ImageError."""
    return decode(data) if channels == COLOURS else decode_planes(data, channels)


def decode_planes(data: bytes, channels: int, *, max_pixels: int = MAX_PIXELS) -> Planes:
    """Decode an image of so many channels.

    A TIFF file may be interleaved, planar, or have one page per channel. An array in a .npy file is [height, width,
    channels] or [channels, height, width], told apart by which axis has the right length; with both it is refused. Of
    other files grey ones have 1 channel, RGBA ones 4. Raises ImageError if the file cannot be read or has another
    number of channels, DataError without tifffile.
    """
    if data.startswith(_NUMPY):
        values = _read_numpy(data, channels)
    elif data.startswith(_TIFF):
        values = _read_tiff(data, channels, max_pixels)
    else:
        values = _read_plain(data, channels, max_pixels)
    if values.shape[2] != channels:
        raise ImageError(f"the image has {values.shape[2]} channels, data.channels is {channels}")
    if not values.size:
        raise ImageError(f"the image has no pixels: width {values.shape[1]}, height {values.shape[0]}")
    if values.shape[0] * values.shape[1] > max_pixels:
        raise ImageError(f"{values.shape[1]} x {values.shape[0]} pixels are more than {max_pixels}")
    return _to_float(values)


def as_planes(image: Source | Image.Image | np.ndarray, channels: int) -> Planes:
    """A file, given as bytes or path, or an array [height, width, channel] as planes. Raises ImageError."""
    if isinstance(image, bytes):
        return decode_planes(image, channels)
    if isinstance(image, str | Path):
        try:
            return decode_planes(Path(image).read_bytes(), channels)
        except OSError as error:
            raise ImageError(f"{image}: cannot be read: {error.strerror}") from error
    values = np.asarray(image)
    if values.ndim != 3 or values.shape[2] != channels:
        raise ImageError(f"the image has the shape {list(values.shape)}; [height, width, {channels}] is wanted")
    return _to_float(values)


def false_colours(planes: Shaped[np.ndarray, "height width channel"]) -> UInt8[np.ndarray, "height width 3"]:
    """Something to look at: the first three channels, or the first as grey, from their lowest value to their highest.

    Ordinary 8-bit colours stay what they are.
    """
    if planes.dtype == np.uint8 and planes.shape[2] == COLOURS:
        return planes
    shown = planes[:, :, :COLOURS] if planes.shape[2] >= COLOURS else np.repeat(planes[:, :, :1], COLOURS, axis=2)
    low, high = shown.min(axis=(0, 1)), shown.max(axis=(0, 1))
    return np.rint((shown - low) / np.where(high > low, high - low, 1) * 255).astype(np.uint8)


def require_tifffile() -> Any:
    """The module. Raises DataError if it is not installed."""
    try:
        import tifffile
    except ImportError as error:
        raise DataError("TIFF files of other than 3 channels need tifffile: pip install 'mcbeit[data]'") from error
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of every odd tag
    return tifffile


def _read_numpy(data: bytes, channels: int) -> Shaped[np.ndarray, "height width channel"]:
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise ImageError("the .npy file is truncated or corrupt, or holds no numbers") from error
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise ImageError(f"the array has the shape {list(values.shape)}; an image has two or three axes")
    first, last = values.shape[0] == channels, values.shape[2] == channels
    if first and last:
        raise ImageError(
            f"the array has the shape {list(values.shape)}: its channels may be the first or the last axis; save an "
            f"image that is not {channels} pixels high or wide, or a TIFF file"
        )
    if not first and not last:
        raise ImageError(f"the array has the shape {list(values.shape)}: no axis has data.channels={channels}")
    return np.moveaxis(values, 0, 2) if first else values


def _read_tiff(data: bytes, channels: int, max_pixels: int) -> Shaped[np.ndarray, "height width channel"]:
    tifffile = require_tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            shape, axes = series.shape, series.axes
            is_small = math.prod(shape) <= max_pixels * channels
            values = series.asarray() if is_small else np.empty(0)
    except Exception as error:  # tifffile may fail in any way on bytes from anywhere
        if "imagecodecs" in str(error):
            raise ImageError("the TIFF compression needs another package: pip install imagecodecs") from error
        raise ImageError("the TIFF file is truncated or corrupt") from error
    if not is_small:
        raise ImageError(f"the TIFF file has {math.prod(shape)} values, more than {max_pixels} pixels")
    return _channels_last(values, axes)


def _channels_last(values: np.ndarray, axes: str) -> Shaped[np.ndarray, "height width channel"]:
    """By what tifffile calls the axes: Y and X are the image, one more axis of whatever kind is the channels."""
    if "Y" not in axes or "X" not in axes:
        raise ImageError(f"the TIFF file has the axes {axes} and no image")
    others = [i for i, axis in enumerate(axes) if axis not in "YX" and values.shape[i] > 1]
    if len(others) > 1:
        raise ImageError(f"the TIFF file has the axes {axes} of {list(values.shape)}; at most one may be of channels")
    order = [axes.index("Y"), axes.index("X"), *others]
    rest = [i for i in range(values.ndim) if i not in order]
    moved = values.transpose(*order, *rest)
    return moved.reshape(*moved.shape[:2], -1)


def _read_plain(data: bytes, channels: int, max_pixels: int) -> Shaped[np.ndarray, "height width channel"]:
    image = open_image(data, max_pixels)
    if image.mode not in _PLAIN_MODES.get(channels, ()):
        bands = len(image.getbands())
        raise ImageError(f"the {image.format} image is {image.mode}, {bands} channels; data.channels is {channels}")
    try:
        image.load()
    except Exception as error:
        raise ImageError(f"the {image.format} data is truncated or corrupt") from error
    values = np.asarray(upright(image))
    return values[:, :, None] if values.ndim == 2 else values


def _to_float(values: Shaped[np.ndarray, "height width channel"]) -> Planes:
    kind = values.dtype.kind
    if kind not in "buif":
        raise ImageError(f"the image holds {values.dtype}, which are no real numbers")
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if kind == "u":
        found /= np.float32(np.iinfo(values.dtype).max)
    if kind == "f":
        np.nan_to_num(found, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return np.ascontiguousarray(found)
