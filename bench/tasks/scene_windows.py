"""Scenes for an encoder whose input is a square of one size: crops to learn from, windows that slide over test images.

Windows are sent as pixels, `compute(pixels, patches=True)`, so weights in torch, an exported graph and a service are
asked the same.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from mcbeit.bench.tasks.task import TaskConfig
from mcbeit.data import Loaded
from mcbeit.encoder import PixelEncoder
from mcbeit.errors import BenchError
from mcbeit.image_files import COLOURS
from mcbeit.segmentation.judging import UNREADABLE, open_scenes_ahead, scored
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.overlap import NUM_AREAS, areas
from mcbeit.segmentation.scene_crops import SceneConfig, SceneDataset, padded, scaled_labels, scaled_pixels
from mcbeit.segmentation.scenes import SceneSource
from mcbeit.segmentation.sliding import best_class, check_stride, slide, starts

Grids = Float[Tensor, "window dim row column"]
ScoreGrids = Callable[[Grids], Float[Tensor, "window class size size"]]
LONG_SIDES = 4  # the long side that an image is scaled to at most, in short sides


class SceneTaskConfig(TaskConfig):
    """How scenes are seen by an encoder."""

    short_side: int | None = Field(None, ge=1)  # pixels that an image is scaled to; default: the encoder's image size
    stride: int | None = Field(None, ge=1)  # pixels from a window to the next; default: two thirds of a window
    batch_size: int = Field(16, ge=1)  # windows at once


class FrozenEncoder:
    """An encoder that is asked for patch features of windows."""

    def __init__(self, encoder: PixelEncoder, config: SceneTaskConfig) -> None:
        self.encoder, self.config = encoder, config
        self.size = encoder.spec.image_size
        self.stride = config.stride or max(1, self.size * 2 // 3)
        check_stride(self.stride, self.size, key="stride")
        if (channels := encoder.spec.preprocess.channels) != COLOURS:
            raise BenchError(f"scenes are images of colours, but '{encoder.spec.name}' sees {channels} channels")
        self.fill = [255 * value for value in encoder.spec.preprocess.mean]

    @property
    def short_side(self) -> int:
        """Pixels that images are scaled to."""
        return self.config.short_side or self.size

    @property
    def scenes(self) -> SceneConfig:
        """The size of test images."""
        return SceneConfig(short_side=self.short_side, long_side=LONG_SIDES * self.short_side)

    def grids(self, windows: UInt8[Tensor, "window 3 size size"]) -> Grids:
        """The patch features of windows."""
        pixels = np.ascontiguousarray(windows.permute(0, 2, 3, 1).numpy())
        found: Float32[np.ndarray, "window row column dim"] = self.encoder.compute(pixels, patches=True)
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, 3, 1)))

    def judge(self, source: SceneSource, score: ScoreGrids, *, num_workers: int) -> Int64[np.ndarray, "image 3 class"]:
        """The areas of every test image by scores of patch features; UNREADABLE where one cannot be read.

        Raises DataError if none can be read or has a labelled pixel.
        """
        each = np.full((len(source), NUM_AREAS, source.num_classes), UNREADABLE, np.int64)
        for image, scene in enumerate(open_scenes_ahead(source, np.arange(len(source)), num_workers)):
            if scene is not None:
                pixels, labels = scene
                each[image] = areas(self.find(pixels, score).numpy(), labels, source.num_classes)
        return scored(0.0, each, source).areas

    def find(self, pixels: UInt8[np.ndarray, "height width 3"], score: ScoreGrids) -> Int64[Tensor, "height width"]:
        """The class of every pixel of an image."""
        height, width = pixels.shape[:2]
        small = scaled_pixels(pixels, *self.scenes.size_at(height, width))
        scores = slide(
            torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1),
            lambda windows: score(self.grids(windows)),
            size=self.size,
            stride=self.stride,
            batch_size=self.config.batch_size,
            fill=self.fill,
        )
        return best_class([scores], height, width)


class WindowDataset(SceneDataset):
    """Crops of scenes as an encoder takes them: pixels, and the label map as a second view."""

    def load(self, index: int, rng: np.random.Generator) -> Loaded:
        """See `ViewDataset`."""
        pixels, labels = self.crop_of(index, rng)
        size, mean = self.preprocess.image_size, [255 * value for value in self.preprocess.mean]
        return Loaded([padded(pixels, size, mean), padded(labels, size, [IGNORED])], {})


def patch_shares(
    labels: UInt8[Tensor, "window size size"], grid: tuple[int, int], num_classes: int
) -> Float[Tensor, "window row column class"]:
    """The share of each class among the labelled pixels of every patch; all 0 where none is labelled.

    Pixels beyond a whole number of patches are left out.
    """
    rows, columns = grid
    height, width = labels.shape[1] // rows, labels.shape[2] // columns
    cells = labels[:, : rows * height, : columns * width].reshape(len(labels), rows, height, columns, width)
    flat = cells.permute(0, 1, 3, 2, 4).reshape(-1, height * width).long()
    counts = torch.zeros(len(flat), num_classes + 1)
    counts.scatter_add_(1, torch.where(flat == IGNORED, num_classes, flat), torch.ones(flat.shape))
    known = counts[:, :num_classes]
    return (known / known.sum(dim=1, keepdim=True).clamp(min=1)).view(len(labels), rows, columns, num_classes)


def window_batches(
    pixels: UInt8[np.ndarray, "height width 3"], labels: UInt8[np.ndarray, "height width"], frozen: FrozenEncoder
) -> Iterator[tuple[UInt8[Tensor, "window 3 size size"], UInt8[Tensor, "window size size"]]]:
    """A training scene, scaled as test images are, in windows side by side with their labels."""

    height, width = frozen.scenes.size_at(*labels.shape)
    size = frozen.size
    image = padded(torch.tensor(scaled_pixels(pixels, height, width)).permute(2, 0, 1), size, frozen.fill)
    map_ = padded(torch.tensor(scaled_labels(labels, height, width))[None], size, [IGNORED])
    places = [
        (slice(top, top + size), slice(left, left + size))
        for top in starts(height, size, size)
        for left in starts(width, size, size)
    ]
    for first in range(0, len(places), frozen.config.batch_size):
        part = places[first : first + frozen.config.batch_size]
        yield torch.stack([image[:, y, x] for y, x in part]), torch.stack([map_[0, y, x] for y, x in part])
