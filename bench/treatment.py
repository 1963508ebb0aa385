"""What is done to images before a model's own preprocessing: they are shown whole at a fixed size, and corrupted.

Preprocessing crops. Around images that are cropped already, as those of ImageNet-C are, a frame is laid that is just
what it crops, so that a model sees them whole and at the scale that it sees others at.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mcbeit.bench.corruptions import VERSION, CorruptionName, Pixels, corrupt
from mcbeit.image_files import decode
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource
from mcbeit.sources.source import Described


@dataclass(frozen=True)
class Treatment:
    """The same for all images of a split; small, so that it can be sent to workers."""

    image_size: int  # pixels that the model sees
    resized_to: int  # of them, before it crops
    size: int | None = None  # pixels that images are brought to first, as ImageNet-C does; None: they are as they are
    corruption: CorruptionName | None = None
    severity: int = 0
    seed: int = 0

    @classmethod
    def before(cls, preprocess: Preprocess, **what: Any) -> "Treatment":
        """What is to be done before this preprocessing."""
        return cls(preprocess.image_size, int(preprocess.image_size / preprocess.crop_fraction), **what)

    def describe(self) -> dict[str, Any]:
        """All that pixels depend on, for JSON."""
        return {"version": VERSION, **asdict(self)}

    def pixels(self, data: bytes, index: int) -> Pixels:
        """The image without its frame. Its number seeds the corruption. Raises ImageError."""
        if self.size is None:
            pixels = np.asarray(decode(data))
        else:
            pixels = Preprocess(image_size=self.size, interpolation="bilinear").pixels(data)
        if self.corruption is None:
            return pixels
        rng = np.random.default_rng([self.seed, index, self.severity, *self.corruption.encode()])
        return corrupt(pixels, self.corruption, self.severity, rng)

    def framed(self, pixels: Pixels) -> UInt8[np.ndarray, "framed_height framed_width 3"]:
        """The image with its outermost pixels repeated as far as preprocessing crops."""
        sides = []
        for side in pixels.shape[:2]:
            rest = round(side * self.resized_to / self.image_size) - side
            sides.append((round(rest / 2), rest - round(rest / 2)))
        return np.pad(pixels, (*sides, (0, 0)), mode="edge")


class TreatedSource(Described):
    """The images of a source of colours after a treatment, as PNG files."""

    def __init__(self, whole: ImageSource, treatment: Treatment) -> None:
        super().__init__(
            labels=whole.labels,
            classes=whole.classes,
            passed_over=whole.passed_over,
            damaged=whole.damaged,
            notes=whole.notes,
        )
        self.whole, self.treatment = whole, treatment

    def __len__(self) -> int:
        return len(self.whole)

    def name(self, index: int) -> str:
        """The name of the whole image."""
        return self.whole.name(index)

    def read(self, index: int) -> bytes:
        """The treated image, written again without loss. Raises OSError or ImageError if the whole cannot be read."""
        pixels = self.treatment.framed(self.treatment.pixels(self.whole.read(index), index))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def summary(self) -> dict[str, Any]:
        """By the whole images, and the treatment."""
        told = f"{self.whole.summary()['names_sha256']} {json.dumps(self.treatment.describe(), sort_keys=True)}"
        return {"images": len(self), "names_sha256": hashlib.sha256(told.encode()).hexdigest()}
