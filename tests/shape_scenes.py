"""Scenes of a disc and a square marked in COCO's format, big enough to be found by a tiny detector."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scenes import draw_scene

from mcbeit.config import validate
from mcbeit.detection.rle import box, encode
from mcbeit.detection.setup import DetectionConfig

CATEGORIES = {2: (4, "disc"), 3: (77, "square")}  # value in the label map -> category id, not contiguous, and name
SINGLE = dict.fromkeys(CATEGORIES, (1, "shape"))


def write_shapes_coco(
    root: Path,
    *,
    train: int = 8,
    val: int = 3,
    seed: int = 0,
    categories: Mapping[int, tuple[int, str]] = CATEGORIES,
) -> Path:
    """A set in the layout of COCO 2017."""
    rng, number = np.random.default_rng(seed), 0
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for image in range(1, count + 1):
            picture, labels = draw_scene(rng)
            name = f"{image:012d}.jpg"
            picture.save(root / f"{split}2017" / name, quality=95)
            images.append({"id": image, "file_name": name, "width": picture.width, "height": picture.height})
            for value, (category, _) in categories.items():
                mask = np.asarray(labels) == value
                if mask.sum() < 40:
                    continue
                number += 1
                shape = {"segmentation": encode(mask), "bbox": list(box(mask)), "area": int(mask.sum())}
                annotations.append({"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **shape})
        named = [{"id": category, "name": name} for category, name in dict.fromkeys(categories.values())]
        content = {"images": images, "annotations": annotations, "categories": named}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def detection_config(source: Path, run: Path, /, **changes: Any) -> DetectionConfig:
    """A backbone of 4 blocks and width 32 from scratch, squares of 64 px in 8 px patches, windows of 4, 4 steps."""
    values: dict[str, Any] = {
        "run": str(run),
        "init": "random",
        "data": {"source": str(source), "num_workers": 0},
        "preprocess": {"image_size": 64},
        "jitter": {"scale": [0.8, 1.2]},
        "model": {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 8, "init": "xavier", "drop_path": 0.1},
        "window": 4,
        "detector": {
            "channels": 32,
            "head_dim": 64,
            "anchor_samples": 32,
            "region_samples": 32,
            "proposals_before": [100, 100],
            "proposals_after": [50, 50],
        },
        "optim": {"steps": 4, "batch_size": 4, "lr": 1e-3, "warmup_fraction": 0.1},
        "eval": {"backend": "fast"},
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return validate(DetectionConfig, {**values, **changes})
