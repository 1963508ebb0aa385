"""Label maps: image files whose pixel values are classes."""

import io
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from mcbeit.errors import ImageError
from mcbeit.image_files import no_warnings

IGNORED: Final = 255  # the value of pixels that count for nothing
MODES = ("L", "P", "1", "I;16", "I;16B", "I")  # whose pixels are one number each


def read_label_map(data: bytes, *, num_classes: int, zero_is_ignored: bool) -> UInt8[np.ndarray, "height width"]:
    """The classes of an encoded label map, counted from 0; IGNORED where there is none.

    With `zero_is_ignored` the file counts classes from 1 and 0 is no class, as in ADE20K. Raises ImageError if it
    cannot be decoded, has colours, or holds a value that is no class.
    """
    values = _values(data)
    is_ignored = values == IGNORED
    if zero_is_ignored:
        is_ignored |= values == 0
        values = values - 1  # signed: nothing wraps around
    if (is_wrong := ~is_ignored & ((values < 0) | (values >= num_classes))).any():
        found, first = int(values[is_wrong][0]) + zero_is_ignored, int(zero_is_ignored)
        raise ImageError(
            f"its label map has the value {found}, but the {num_classes} classes are {first} to "
            f"{num_classes - 1 + first}, and {IGNORED}{' and 0 are' if zero_is_ignored else ' is'} ignored"
        )
    return np.where(is_ignored, IGNORED, values).astype(np.uint8)


def _values(data: bytes) -> Int[np.ndarray, "height width"]:
    """The numbers of the file; indices of a palette are numbers."""
    try:
        with no_warnings(), Image.open(io.BytesIO(data)) as image:
            if image.mode not in MODES:
                raise ImageError(
                    f"its label map has pixels of the mode {image.mode}, but the value of a pixel must be its class: "
                    f"one whole number each ({', '.join(MODES)}); convert it"
                )
            return np.asarray(image).astype(np.int32)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders have no class of their own for files that are broken
        raise ImageError(f"its label map cannot be decoded ({type(error).__name__})") from error
