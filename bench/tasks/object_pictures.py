"""Pictures of marked and found objects, for reports."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from mcbeit.bench.figures import picture_uri
from mcbeit.bench.tasks.scene_scores import PICTURE_SIDE, class_colour
from mcbeit.detection.coco import CocoSource
from mcbeit.detection.detections import Detections
from mcbeit.detection.rle import box, decode
from mcbeit.image_files import decode as decode_image

NUM_PICTURES = 6
MIN_SCORE = 0.5  # of what is drawn
SHADE = 0.55  # of the colour of a class over its object

Marked = tuple[int, Bool[np.ndarray, "height width"]]  # class and mask


def object_picture(source: CocoSource, index: int, found: Detections) -> dict[str, Any]:
    """An image, the objects marked in it and those found, side by side in a report."""
    marks, image = source.annotations(index), np.array(decode_image(source.read(index)))
    truth = [
        (int(label), decode(shape, marks.height, marks.width))
        for label, shape in zip(marks.labels, marks.segmentations, strict=True)
    ]
    masks = found.pasted(marks.height, marks.width)
    sure = [
        (int(label), mask.numpy())
        for label, score, mask in zip(found.labels, found.scores, masks, strict=True)
        if score >= MIN_SCORE
    ]
    there = sorted({label for label, _ in [*truth, *sure]})
    return {
        "scene": source.name(index),
        "image": picture_uri(image, PICTURE_SIDE),
        "truth": picture_uri(_drawn(image, truth), PICTURE_SIDE),
        "found": picture_uri(_drawn(image, sure), PICTURE_SIDE),
        "classes": [
            {"name": source.classes[c], "colour": "#{:02x}{:02x}{:02x}".format(*class_colour(c))} for c in there
        ],
    }


def _drawn(
    image: UInt8[np.ndarray, "height width 3"], objects: Iterable[Marked]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in grey, with the masks and boxes of objects in the colours of their classes."""
    shaded = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    frames = []
    for label, mask in objects:
        shaded[mask] = SHADE * np.array(class_colour(label)) + (1 - SHADE) * shaded[mask]
        if mask.any():
            frames.append((box(mask), class_colour(label)))
    picture = Image.fromarray(shaded.astype(np.uint8))
    draw, width = ImageDraw.Draw(picture), max(1, round(max(picture.size) / 160))
    for (left, top, box_width, box_height), colour in frames:
        draw.rectangle((left, top, left + box_width - 1, top + box_height - 1), outline=colour, width=width)
    return np.array(picture)
