"""What tasks on scenes with label maps have in common: metrics from areas, and pictures of what was found."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer, UInt8
from PIL import Image
from torch import Tensor

from mcbeit.bench.figures import picture_uri
from mcbeit.bench.manifest import MAX_LISTED, Used
from mcbeit.bench.result import Curve, Metric, Selection, bootstrapped
from mcbeit.bench.tasks.task import Outcome
from mcbeit.segmentation.judging import UNREADABLE, read_areas
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.overlap import bootstrap_mean_iou, overlap
from mcbeit.segmentation.scene_crops import read_scene
from mcbeit.segmentation.scenes import Scenes, SceneSource

PRIMARY = "miou"
DRAWS = 1000
NUM_PICTURES = 6
PICTURE_SIDE = 160  # pixels, a side
NONE: Mapping[str, Metric] = MappingProxyType({})
SHADE = 0.6  # of the colour of a class over the image


def scene_metrics(
    each: Int64[np.ndarray, "image 3 class"], *, seed: int, selection: Selection = "none"
) -> dict[str, Metric]:
    """Mean IoU with its bootstrap over test images, pixel accuracy and mean accuracy of the classes."""
    areas = read_areas(each)
    found, draws = overlap(areas.sum(axis=0)), bootstrap_mean_iou(areas, seed=seed, draws=DRAWS)
    common: dict[str, Any] = {"selection": selection, "num_samples": len(areas)}
    return {
        PRIMARY: bootstrapped(found.mean_iou, draws, "images", **common),
        "pixel accuracy": Metric(value=found.pixel_accuracy, **common),
        "mean accuracy": Metric(value=found.mean_accuracy, **common),
    }


def by_class(each: Int64[np.ndarray, "image 3 class"]) -> dict[str, tuple[float | None, ...]]:
    """IoU and accuracy of each class; None where it is nowhere."""
    found = overlap(read_areas(each).sum(axis=0))
    return {
        name: tuple(float(value) if np.isfinite(value) else None for value in values)
        for name, values in ((PRIMARY, found.iou), ("mean accuracy", found.accuracy))
    }


def scene_outcome(
    scenes: Scenes,
    each: Int64[np.ndarray, "image 3 class"],
    find: Callable[[UInt8[np.ndarray, "height width 3"]], Int64[Tensor, "height width"]],
    *,
    seed: int,
    selection: Selection,
    train: Used,
    seconds: dict[str, float],
    remarks: tuple[str, ...] = (),
    curves: tuple[Curve, ...] = (),
    others: Mapping[str, Metric] = NONE,
) -> Outcome:
    """The outcome of a task by the areas of its test images; `find` segments some of them for pictures."""
    source = scenes.val
    missing = np.flatnonzero(each[:, 0, 0] == UNREADABLE)
    names = tuple(source.name(int(i)) for i in missing[:MAX_LISTED])
    used = Used(num_used=len(each) - len(missing), num_unreadable=len(missing), unreadable=names)
    return Outcome(
        primary=PRIMARY,
        metrics={**scene_metrics(each, seed=seed, selection=selection), **others},
        used={"train": train, "val": used},
        per_class=by_class(each),
        curves=curves,
        remarks=remarks,
        seconds=seconds,
        pictures=_pictures(source, missing, find, seed),
    )


def _pictures(
    source: SceneSource,
    missing: Int64[np.ndarray, " image"],
    find: Callable[[UInt8[np.ndarray, "height width 3"]], Int64[Tensor, "height width"]],
    seed: int,
) -> list[dict[str, Any]]:
    readable = np.setdiff1d(np.arange(len(source)), missing)
    rng = np.random.default_rng(seed)
    found = []
    for index in np.sort(rng.choice(readable, size=min(NUM_PICTURES, len(readable)), replace=False)).tolist():
        pixels, labels = read_scene(source, index)
        found.append(scene_picture(source.name(index), pixels, labels, find(pixels).cpu().numpy(), source.classes))
    return found


def scene_picture(
    name: str,
    pixels: UInt8[np.ndarray, "height width 3"],
    labels: Integer[np.ndarray, "height width"],
    found: Integer[np.ndarray, "height width"],
    classes: Sequence[str],
) -> dict[str, Any]:
    """An image, its label map and what was found, side by side in a report, with the names of the colours in them."""
    there = [int(c) for c in np.unique(np.concatenate([labels.ravel(), found.ravel()])) if c != IGNORED]
    return {
        "scene": name,
        "image": picture_uri(pixels, PICTURE_SIDE),
        "truth": picture_uri(_shaded(pixels, labels), PICTURE_SIDE),
        "found": picture_uri(_shaded(pixels, found), PICTURE_SIDE),
        "classes": [{"name": classes[c], "colour": "#{:02x}{:02x}{:02x}".format(*class_colour(c))} for c in there],
    }


def class_colour(number: int) -> tuple[int, int, int]:
    """A colour per class; neighbours in number are far apart in hue."""
    hue = int(number * 256 * 0.381966) % 256
    values = Image.new("HSV", (1, 1), (hue, 200 - 60 * (number // 7 % 2), 230 - 70 * (number // 14 % 2)))
    red, green, blue = np.asarray(values.convert("RGB"))[0, 0].tolist()
    return red, green, blue


def _shaded(
    pixels: UInt8[np.ndarray, "height width 3"], classes: Integer[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    table = np.zeros((256, 3), np.float32)
    for number in np.unique(classes):
        table[number] = 40 if number == IGNORED else class_colour(int(number))
    grey = pixels.mean(axis=2, keepdims=True)
    return (SHADE * table[classes] + (1 - SHADE) * grey).astype(np.uint8)
