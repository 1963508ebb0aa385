"""Parts of images."""

import hashlib
import io
from typing import Any

import numpy as np
from jaxtyping import Float

from mcbeit.errors import ImageError
from mcbeit.image_files import MAX_PIXELS, open_image, upright
from mcbeit.sources.source import Described, ImageSource


class CroppedSource(Described):
    """One part of each image of a source of colours, as a PNG file, without labels.

    Boxes are left, top, right and bottom, in pixels of the image as it is stored, before it is turned upright; they are
    rounded, and what lies outside the image is black.
    """

    def __init__(self, whole: ImageSource, boxes: Float[np.ndarray, "image 4"]) -> None:
        super().__init__(passed_over=whole.passed_over, damaged=whole.damaged, notes=whole.notes)
        self.whole, self.boxes = whole, boxes

    def __len__(self) -> int:
        return len(self.whole)

    def name(self, index: int) -> str:
        """The name of the whole image."""
        return self.whole.name(index)

    def read(self, index: int) -> bytes:
        """The part, written again without loss. Raises OSError or ImageError if the whole cannot be read."""
        whole = open_image(self.whole.read(index), MAX_PIXELS)
        left, top, right, bottom = map(float, self.boxes[index])
        try:
            part = upright(whole.convert("RGB").crop((left, top, right, bottom)))
        except Exception as error:  # Pillow may fail in any way on bytes from anywhere
            raise ImageError(f"the {whole.format} data is truncated or corrupt") from error
        part.info = {}  # with the orientation, which it would be turned by once more
        buffer = io.BytesIO()
        part.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def summary(self) -> dict[str, Any]:
        """By the whole images, and the boxes."""
        whole = self.whole.summary()["names_sha256"]
        return {"images": len(self), "names_sha256": hashlib.sha256(whole.encode() + self.boxes.tobytes()).hexdigest()}
