"""Image files as pictures: decoded by Pillow, upright, in RGB of 8 bits (no torch).

Training, evaluation, service and benchmark all read files with the same `decode`.
"""

import io
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mcbeit.errors import ImageError

COLOURS = 3  # channels of an ordinary image: red, green, blue
MAX_PIXELS = 2**30 // 12  # 89 million: the size from which Pillow, too, speaks of a decompression bomb

Source = bytes | str | Path
Shrink = Callable[[int, int], int]  # of width and height when upright; the factor by which a decoder may shrink

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
