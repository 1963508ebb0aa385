"""Detections of many images, as the file that COCO's tools read: a list of entries with boxes and run-length codes."""

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mcbeit.atomic import replacing
from mcbeit.detection.detections import Detections
from mcbeit.detection.rle import encode


class CocoResults:
    """Entries of a results file, some 200 bytes each: COCO's 5,000 test images may have 500,000.

    Iterating gives them as the file has them: `image_id`, the `category_id` of the annotation file, `bbox` (left, top,
    width, height in pixels), `score` and `segmentation`.
    """

    def __init__(self, category_ids: Int64[np.ndarray, " class"]) -> None:
        self.category_ids = category_ids
        self._images, self._categories, self._sizes = array("q"), array("q"), array("l")
        self._numbers = array("f")  # the box and the score
        self._codes: list[str] = []

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i, code in enumerate(self._codes):
            left, top, width, height, score = (_shortest(value) for value in self._numbers[5 * i : 5 * i + 5])
            yield {
                "image_id": self._images[i],
                "category_id": self._categories[i],
                "bbox": [left, top, width, height],
                "score": score,
                "segmentation": {"size": self._sizes[2 * i : 2 * i + 2].tolist(), "counts": code},
            }

    def add(self, image_id: int, height: int, width: int, found: Detections) -> None:
        """Take what was found in an image of this size, in its own pixels."""
        masks = found.pasted(height, width)
        for box, score, label, mask in zip(found.boxes, found.scores, found.labels, masks, strict=True):
            left, top, right, bottom = box.tolist()
            self._images.append(image_id)
            self._categories.append(int(self.category_ids[int(label)]))
            self._sizes.extend((height, width))
            self._numbers.extend((left, top, right - left, bottom - top, float(score)))
            self._codes.append(encode(mask.cpu().numpy())["counts"])

    def extend(self, others: "CocoResults") -> None:
        """Take the entries of another worker."""
        self._images += others._images
        self._categories += others._categories
        self._sizes += others._sizes
        self._numbers += others._numbers
        self._codes += others._codes

    def write(self, path: Path) -> None:
        """Write the file, entry by entry."""
        with replacing(path) as partial, partial.open("w", encoding="ascii") as file:
            file.write("[")
            for i, entry in enumerate(self):
                file.write((",\n" if i else "\n") + json.dumps(entry, separators=(",", ":")))
            file.write("\n]\n")


def _shortest(value: float) -> float:
    """The shortest number that is the same in float32."""
    return float(str(np.float32(value)))
