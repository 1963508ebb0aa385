"""Training samples of annotated images: a square of each, with boxes, labels and masks of what is in it."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mcbeit.augment import CropConfig, View
from mcbeit.data import Loaded, ViewDataset
from mcbeit.detection.coco import CocoSource
from mcbeit.detection.large_scale_jitter import JitterConfig, boxes_of, draw_placing, fit_placing
from mcbeit.errors import DataError, ImageError
from mcbeit.image_files import decode

USUAL_OBJECTS = 8  # per image, COCO's mean: by it is bounded how many samples are read ahead


class DetectionDataset(ViewDataset):
    """Annotated images under large-scale jitter; indexed by Key, all that is random is a function of it.

    The targets of an image are `boxes` [object, 4] (left, top, right, bottom in pixels), `labels` (from 0) and `masks`
    [object, size, size] (uint8). Objects of which nothing is left in the square are left out.
    """

    def __init__(self, source: CocoSource, *, seed: int, size: int, jitter: JitterConfig, num_dice: int) -> None:
        super().__init__(source, seed=seed, crop=CropConfig(), views=(View(size, "bilinear"),), num_dice=num_dice)
        self.marked, self.size, self.jitter = source, size, jitter

    @property
    def sample_bytes(self) -> int:
        """The size of an image and of the masks of a usual number of objects."""
        return self.size**2 * (self.source.channels + USUAL_OBJECTS)

    def load(self, index: int, rng: np.random.Generator) -> Loaded:
        """See `ViewDataset`. An image of another size than its annotations state is as bad as an unreadable one."""
        marks = self.marked.annotations(index)
        image = _decoded(self.marked, index)
        placing = draw_placing(marks.height, marks.width, self.size, self.jitter, rng)
        try:
            masks = placing.masks(marks.segmentations, marks.height, marks.width)
        except DataError as error:
            raise ImageError(f"its annotations cannot be used: {error}") from error
        seen = masks.any(axis=(1, 2))
        targets = {"boxes": boxes_of(masks[seen]), "labels": marks.labels[seen], "masks": masks[seen]}
        return Loaded([placing.image(image)], {name: torch.from_numpy(values) for name, values in targets.items()})


def load_whole(source: CocoSource, index: int, size: int) -> UInt8[Tensor, "3 size size"]:
    """An image as it is tested: its longer side resized to `size`, the rest padded.

    Raises ImageError or OSError if it cannot be read.
    """
    height, width = source.size_of(index)
    return fit_placing(height, width, size).image(_decoded(source, index))


def _decoded(source: CocoSource, index: int) -> Image.Image:
    image, (height, width) = decode(source.read(index)), source.size_of(index)
    if image.size != (width, height):
        raise ImageError(
            f"upright, the image is {image.width} wide and {image.height} high; its annotations are for {width} and "
            f"{height}"
        )
    return image
