"""Tiny scenes with label maps: a disc (class 1) and a square (class 2) on a ground (class 0), in ADE20K's layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mcbeit.config import validate
from mcbeit.segmentation.setup import SegmentationConfig

CLASSES = ("ground", "disc", "square")


def draw_scene(rng: np.random.Generator, *, width: int = 48, height: int = 40) -> tuple[Image.Image, Image.Image]:
    """A picture, and its label map as ADE20K has it: 0 is ignored, classes count from 1."""
    picture = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(0, 60, 3)))
    labels = Image.new("L", (width, height), 1)
    for value, (kind, colour) in enumerate((("ellipse", (220, 60, 60)), ("rectangle", (60, 60, 220))), start=2):
        left, top = int(rng.integers(0, width - 16)), int(rng.integers(0, height - 16))
        box = (left, top, left + 14, top + 14)
        getattr(ImageDraw.Draw(picture), kind)(box, fill=colour)
        getattr(ImageDraw.Draw(labels), kind)(box, fill=value)
    ImageDraw.Draw(labels).rectangle((0, 0, 2, 2), fill=0)
    return picture, labels


def write_ade20k(root: Path, *, train: int = 8, val: int = 3, seed: int = 0, classes: Sequence[str] = CLASSES) -> Path:
    """A set of scenes in the layout of ADEChallengeData2016; of fewer classes the last stands for all further ones."""
    rng = np.random.default_rng(seed)
    for split, short, count in (("training", "train", train), ("validation", "val", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for number in range(1, count + 1):
            picture, labels = draw_scene(rng)
            picture.save(root / "images" / split / f"ADE_{short}_{number:08d}.jpg", quality=95)
            labels = labels.point([min(value, len(classes)) for value in range(256)])
            labels.save(root / "annotations" / split / f"ADE_{short}_{number:08d}.png")
    rows = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0.3\t8\t3\t{name}" for i, name in enumerate(classes, start=1))]
    (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return root


def segmentation_config(source: Path, run: Path, /, **changes: Any) -> SegmentationConfig:
    """A backbone of 4 blocks and width 32 from scratch, crops of 32 px in 4 px patches, 6 steps."""
    values: dict[str, Any] = {
        "run": str(run),
        "init": "random",
        "data": {"source": str(source), "num_workers": 0},
        "preprocess": {"image_size": 32},
        "scenes": {"long_side": 160, "short_side": 40, "max_class_share": 1.0},
        "model": {"dim": 32, "depth": 4, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.1},
        "head": {"channels": 16, "auxiliary_channels": 8},
        "optim": {"steps": 6, "batch_size": 4, "lr": 1e-3, "warmup_steps": 2},
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return validate(SegmentationConfig, {**values, **changes})
