"""How well a detector finds the objects of test images, over all workers, by COCO's scores."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mcbeit.data import open_loader
from mcbeit.detection.coco import CocoSource
from mcbeit.detection.coco_results import CocoResults
from mcbeit.detection.coco_scores import Backend, Kind, Scores, require, score
from mcbeit.detection.dataset import load_whole
from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.device import Precision
from mcbeit.epochs import BY_TEST
from mcbeit.errors import DataError, ImageError
from mcbeit.group import Group

NAMES: dict[Kind, str] = {"bbox": "box", "segm": "mask"}


class DetectedEpoch(NamedTuple):
    """A detector after some epochs, judged."""

    number: float
    scores: dict[Kind, Scores]
    results: CocoResults
    unreadable: tuple[int, ...]  # images of the source that count as if nothing were found in them

    @property
    def criterion(self) -> tuple[str, float]:
        """See `JudgedEpoch`."""
        return "box_ap", self._ap("bbox")

    @property
    def selection(self) -> str:
        """See `JudgedEpoch`."""
        return BY_TEST

    def record(self) -> dict[str, float]:
        """See `JudgedEpoch`."""
        return {"box_ap": self._ap("bbox"), "mask_ap": self._ap("segm")}

    def describe(self) -> str:
        """See `JudgedEpoch`."""
        unread = f", {len(self.unreadable)} images unreadable" if self.unreadable else ""
        return (
            f"epoch {self.number:.3g}: box AP {self._ap('bbox'):.4f}, mask AP {self._ap('segm'):.4f}, "
            f"{len(self.results)} detections{unread}"
        )

    def as_json(self) -> dict[str, Any]:
        """All scores by `box` and `mask`, and the images that could not be read."""
        told = {NAMES[kind]: {"stats": one.stats, "by_class": one.by_class} for kind, one in self.scores.items()}
        return {"epoch": self.number, **told, "unreadable": list(self.unreadable)}

    def _ap(self, kind: Kind) -> float:
        value = self.scores[kind].stats["AP"]
        return 0.0 if value is None else value


def check_scorable(source: CocoSource, backend: Backend) -> None:
    """Raise DataError now, where scores of these test images would fail after all training."""
    require(backend)
    if source.file.num_bare:
        raise DataError(
            f"'{source.file.path}' has {source.file.num_bare} annotations without a segmentation, so masks cannot be "
            "scored; outline these objects, or take the annotations out"
        )
    if not source.num_objects:
        raise DataError(f"none of the {len(source)} test images of '{source.file.path}' shows an object to find")


def judge(
    model: MaskRCNN,
    source: CocoSource,
    precision: Precision,
    *,
    number: float,
    group: Group,
    num_workers: int,
    batch_size: int,
    backend: Backend,
) -> DetectedEpoch:
    """Look for objects, each worker in its part of the images, and score what was found.

    Raises DataError if no image can be read. All workers must call it.
    """
    mine = np.arange(len(source))[group.rank :: group.size]
    results, unreadable = CocoResults(source.category_ids), []
    found = _results(model, source, mine, precision, num_workers=num_workers, batch_size=batch_size)
    for part, missing in group.gather(found):
        results.extend(part)
        unreadable += missing
    if len(unreadable) == len(source):
        raise DataError(f"none of the {len(source)} test images, such as '{source.name(0)}', can be read")
    image_ids = source.image_ids.tolist()
    scores = group.first(lambda: score(source.file.path, results, image_ids=image_ids, backend=backend))
    return DetectedEpoch(number, scores, results, tuple(sorted(unreadable)))


def _results(
    model: MaskRCNN,
    source: CocoSource,
    images: Int64[np.ndarray, " asked"],
    precision: Precision,
    *,
    num_workers: int,
    batch_size: int,
) -> tuple[CocoResults, list[int]]:
    """What is found in some images, and which of them cannot be read."""
    results, unreadable = CocoResults(source.category_ids), list[int]()
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    for batch in _batches(source, images, model.image_size, num_workers, batch_size):
        read = [(image, pixels) for image, pixels in batch if pixels is not None]
        unreadable += [image for image, pixels in batch if pixels is None]
        if not read:
            continue
        with precision.autocast(device):
            found = model.detect(torch.stack([pixels for _, pixels in read]).to(device))
        for (image, _), one in zip(read, found, strict=True):
            height, width = source.size_of(image)
            objects = one.in_image(height, width, model.image_size)
            results.add(int(source.image_ids[image]), height, width, objects)
    model.train(was_training)
    return results, unreadable


class _Images(Dataset[tuple[int, Tensor | None]]):
    """Test images by their number; None where one cannot be read."""

    def __init__(self, source: CocoSource, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        try:
            return index, load_whole(self.source, index, self.size)
        except (ImageError, OSError):
            return index, None


def _batches(
    source: CocoSource, images: Int64[np.ndarray, " asked"], size: int, num_workers: int, batch_size: int
) -> Iterator[Sequence[tuple[int, UInt8[Tensor, "3 size size"] | None]]]:
    yield from open_loader(
        _Images(source, size),
        batch_size=batch_size,
        sampler=[int(image) for image in images],
        num_workers=num_workers,
        collate_fn=list,
    )
