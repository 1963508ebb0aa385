"""How well a segmenter finds the classes of test scenes: sliding windows at the size of the image, over all workers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mcbeit.augment import normalise
from mcbeit.data import open_loader
from mcbeit.device import Precision
from mcbeit.epochs import BY_TEST
from mcbeit.errors import DataError, ImageError
from mcbeit.group import Group
from mcbeit.preprocess import Preprocess
from mcbeit.segmentation.overlap import NUM_AREAS, Overlap, areas, overlap
from mcbeit.segmentation.scene_crops import SceneConfig, read_scene, scaled_pixels
from mcbeit.segmentation.scenes import SceneSource
from mcbeit.segmentation.segmenter import Segmenter
from mcbeit.segmentation.sliding import best_class, slide

UNREADABLE = -1  # in place of every area of an image


class Windows(NamedTuple):
    """How test images are looked at."""

    stride: int  # pixels from a window to the next
    batch_size: int  # windows at once
    scales: Sequence[float] = (1.0,)  # of the image; of several, probabilities are averaged
    flip: bool = False  # look at the mirror image too


class ScoredEpoch(NamedTuple):
    """A segmenter after some epochs, judged."""

    number: float
    areas: Int64[np.ndarray, "image 3 class"]  # UNREADABLE where an image cannot be read
    overlap: Overlap

    @property
    def criterion(self) -> tuple[str, float]:
        """See `JudgedEpoch`."""
        return "mean_iou", self.overlap.mean_iou

    @property
    def selection(self) -> str:
        """See `JudgedEpoch`."""
        return BY_TEST

    @property
    def num_unreadable(self) -> int:
        """Images that could not be read."""
        return int((self.areas[:, 0, 0] == UNREADABLE).sum())

    def record(self) -> dict[str, float]:
        """See `JudgedEpoch`."""
        found = self.overlap
        return {
            "mean_iou": found.mean_iou,
            "pixel_accuracy": found.pixel_accuracy,
            "mean_accuracy": found.mean_accuracy,
        }

    def describe(self) -> str:
        """See `JudgedEpoch`."""
        unread = f", {self.num_unreadable} unreadable ones left out" if self.num_unreadable else ""
        return (
            f"epoch {self.number:.3g}: mean IoU {self.overlap.mean_iou:.4f}, pixel accuracy "
            f"{self.overlap.pixel_accuracy:.4f} on {len(self.areas)} test images{unread}"
        )


def read_areas(each: Int64[np.ndarray, "image 3 class"]) -> Int64[np.ndarray, "read 3 class"]:
    """Those of the images that can be read."""
    return each[each[:, 0, 0] != UNREADABLE]


def judge(
    model: Segmenter,
    source: SceneSource,
    scenes: SceneConfig,
    preprocess: Preprocess,
    windows: Windows,
    precision: Precision,
    *,
    number: float,
    group: Group,
    num_workers: int,
) -> ScoredEpoch:
    """Judge a model, each worker its part of the images; all workers learn all of it.

    Raises DataError if none of the images can be read, or if none has a labelled pixel.
    """
    mine = np.arange(len(source))[group.rank :: group.size]
    each = np.full((len(source), NUM_AREAS, source.num_classes), UNREADABLE, np.int64)
    found = list(_areas_of(model, source, mine, scenes, preprocess, windows, precision, num_workers))
    for rank, part in enumerate(group.gather(found)):
        for image, one in zip(range(rank, len(source), group.size), part, strict=True):
            if one is not None:
                each[image] = one
    return scored(number, each, source)


def scored(number: float, each: Int64[np.ndarray, "image 3 class"], source: SceneSource) -> ScoredEpoch:
    """The metrics of the areas of all test images. Raises DataError if none can be read or has a labelled pixel."""
    total = read_areas(each).sum(axis=0)
    if not total[-1].sum():
        raise DataError(
            f"none of the {len(source)} test images, such as '{source.name(0)}', can be read and has a labelled pixel"
        )
    return ScoredEpoch(number, each, overlap(total))


def _areas_of(
    model: Segmenter,
    source: SceneSource,
    images: Int64[np.ndarray, " asked"],
    scenes: SceneConfig,
    preprocess: Preprocess,
    windows: Windows,
    precision: Precision,
    num_workers: int,
) -> Iterator[Int64[np.ndarray, "3 class"] | None]:
    for scene in open_scenes_ahead(source, images, num_workers):
        if scene is None:
            yield None
            continue
        pixels, labels = scene
        found = find_classes(model, pixels, scenes, preprocess, windows, precision)
        yield areas(found.cpu().numpy(), labels, source.num_classes)


@torch.no_grad()
def find_classes(
    model: Segmenter,
    pixels: UInt8[np.ndarray, "height width 3"],
    scenes: SceneConfig,
    preprocess: Preprocess,
    windows: Windows,
    precision: Precision,
) -> Int64[Tensor, "height width"]:
    """The class of every pixel of an image."""
    height, width = pixels.shape[:2]
    device, was_training = next(model.parameters()).device, model.training
    model.eval()

    def score(batch: Float[Tensor, "window channel size size"]) -> Float[Tensor, "window class size size"]:
        with precision.autocast(device):
            return model.score(batch)

    def look(factor: float, *, mirrored: bool) -> Float[Tensor, "class h w"]:
        shown = scaled_pixels(pixels, *scenes.size_at(height, width, factor))
        image = torch.from_numpy(np.ascontiguousarray(shown[:, ::-1] if mirrored else shown)).permute(2, 0, 1)[None]
        image = normalise(image.to(device), preprocess.mean, preprocess.std)[0]
        size = preprocess.image_size
        found = slide(image, score, size=size, stride=windows.stride, batch_size=windows.batch_size)
        return found.flip(-1) if mirrored else found

    sides = (False, True) if windows.flip else (False,)
    looks = [look(factor, mirrored=mirrored) for factor in windows.scales for mirrored in sides]
    model.train(was_training)
    return best_class(looks, height, width)


class _Scenes(Dataset[tuple[Tensor, Tensor] | None]):
    """Scenes by their number; None where one cannot be read."""

    def __init__(self, source: SceneSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | None:
        try:
            pixels, labels = read_scene(self.source, index)
        except (ImageError, OSError):
            return None
        return torch.tensor(pixels), torch.from_numpy(labels)


def open_scenes_ahead(
    source: SceneSource, images: Int64[np.ndarray, " asked"], num_workers: int
) -> Iterator[tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]] | None]:
    """Images with label maps in the order asked for, read ahead by processes; None where one cannot be read."""
    sampler = [int(image) for image in images]
    loader = open_loader(_Scenes(source), batch_size=None, sampler=sampler, num_workers=num_workers)
    for scene in loader:
        yield None if scene is None else (scene[0].numpy(), scene[1].numpy())
