"""Small sets of annotated images in COCO's format."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from images import encode, photo

CATEGORIES = {3: "disc", 17: "square", 90: "bar"}  # not contiguous, as COCO's


def rectangle(left: float, top: float, width: float, height: float) -> list[list[float]]:
    """The polygon of a box."""
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number: int, image: int, category: int, box: tuple[float, float, float, float], **changes: Any) -> Any:
    """A rectangle, as COCO writes it; None as a change takes a key away."""
    entry = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": rectangle(*box),
        **changes,
    }
    return {key: value for key, value in entry.items() if value is not None}


def content(sizes: Mapping[int, tuple[int, int]], annotations: list[Any]) -> dict[str, Any]:
    """A whole file; `sizes` are height and width by the id of the image."""
    images = [
        {"id": number, "file_name": f"{number:012}.png", "height": height, "width": width}
        for number, (height, width) in sizes.items()
    ]
    categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in CATEGORIES.items()]
    return {"info": {"year": 2026}, "images": images, "annotations": annotations, "categories": categories}


def write_split(root: Path, split: str, values: dict[str, Any], *, year: str = "2017") -> tuple[Path, Path]:
    """The annotation file and the folder of images, noise of the sizes that the file states."""
    annotations, folder = root / "annotations" / f"instances_{split}{year}.json", root / f"{split}{year}"
    annotations.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(values))
    for image in values["images"]:
        (folder / image["file_name"]).write_bytes(encode(photo(image["height"], image["width"], seed=image["id"])))
    return annotations, folder


def small_train() -> dict[str, Any]:
    """Four images in no order: two with objects, one with a crowd only, one with nothing."""
    crowd = {"size": [30, 40], "counts": [0, 600, 600]}
    return content(
        {42: (30, 40), 7: (50, 20), 9: (30, 40), 11: (16, 16)},
        [
            annotation(5, 42, 90, (2, 3, 10, 20)),
            annotation(1, 7, 3, (0, 0, 8, 8)),
            annotation(2, 42, 17, (20, 10, 12, 6)),
            annotation(3, 9, 17, (0, 0, 20, 30), iscrowd=1, segmentation=crowd),
            annotation(8, 42, 3, (5, 5, 5, 5), segmentation=[[1, 2, 3, 4]]),
        ],
    )


def small_val() -> dict[str, Any]:
    """Two images, one without objects."""
    return content({1: (24, 24), 2: (24, 32)}, [annotation(1, 2, 17, (4, 4, 12, 12))])


def write_coco(root: Path, *, change: Callable[[dict[str, Any]], None] | None = None, year: str = "2017") -> Path:
    """Both splits; `change` edits the annotations of the training images before they are written."""
    train = small_train()
    if change is not None:
        change(train)
    write_split(root, "train", train, year=year)
    write_split(root, "val", small_val(), year=year)
    return root
