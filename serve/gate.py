"""The gate: bytes of a stranger in, pixels of the model's size out, or one refusal. Runs in threads."""

import math

import numpy as np
from jaxtyping import UInt8
from PIL.ImageFile import ImageFile

from mcbeit.errors import ImageError
from mcbeit.image_files import format_of, open_image
from mcbeit.preprocess import Preprocess
from mcbeit.serve.config import Limits
from mcbeit.serve.decoding import PixelBudget
from mcbeit.serve.errors import RequestError, invalid, too_large
from mcbeit.serve.parts import check_parts

ANY_SIZE = 2**62  # pixels: the limit is looked at here
TILE_SIDES = (322, 323)  # TIFF tags: width and length of a tile
UNKNOWN = "NPY"  # what `format_of` says of bytes that no image file begins with


class ImageGate:
    """Looks at an image before its pixels are decoded, and decodes what passes."""

    def __init__(self, limits: Limits, preprocess: Preprocess, budget: PixelBudget) -> None:
        self.limits, self.preprocess, self.budget = limits, preprocess, budget

    def pixels(self, data: bytes) -> UInt8[np.ndarray, "size size 3"]:
        """What the model takes. Raises RequestError: 400 for no or a broken image, 413 for a large one, 415."""
        return self.decode(data, self.check(data))

    def decode(self, data: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """The same for an image of which `check` has given the size."""
        try:
            with self.budget.taking(size):
                return self.preprocess.pixels(data)
        except ImageError as error:
            raise _broken(error) from error

    def check(self, data: bytes) -> int:
        """The number of pixels by the header. Raises RequestError as `pixels` does."""
        limits = self.limits
        if not data:
            raise invalid("the image is empty: 0 bytes", code="empty_image")
        kind = format_of(data)
        if kind not in limits.formats:
            found = "not an image file that is known here" if kind == UNKNOWN else f"a {kind} file"
            raise RequestError(
                415, "unsupported_image_format", f"this is {found}; allowed: {', '.join(limits.formats)}"
            )
        try:
            check_parts(kind, data)
            image = open_image(data, ANY_SIZE)
        except ImageError as error:
            raise _broken(error) from error
        long, short = max(image.size), min(image.size)
        if kind == "TIFF" and _tile_pixels(image) > limits.pixels:
            raise too_large(f"the tiles of the TIFF file have more than the {limits.pixels} pixels allowed")
        if long * short > limits.pixels:
            raise too_large(
                f"the image has {image.width} x {image.height} pixels, more than the {limits.pixels} allowed"
            )
        if long > limits.side:
            raise too_large(f"the image has a side of {long} pixels, more than the {limits.side} allowed")
        if long > limits.aspect * short:
            raise too_large(f"one side of the image is more than {limits.aspect:g} times the other: {long} x {short}")
        return image.width * image.height


def _tile_pixels(image: ImageFile) -> int:
    """Of one tile of a TIFF, which is decoded as a whole, however small the image is."""
    sides = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in TILE_SIDES]
    return math.prod(side if isinstance(side, int) else 0 for side in sides)


def _broken(error: ImageError) -> RequestError:
    """Our own text of what is wrong with a file; that of Pillow stays inside."""
    return invalid(f"the image cannot be read: {error}", code="image_decode_failed")
