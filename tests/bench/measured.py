"""Small sets of images to measure on, and results of made-up measurements."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mcbeit.bench.manifest import Manifest, Used
from mcbeit.bench.result import Answers, DataFacts, ModelFacts, Result, Split, TaskFacts, accuracy
from mcbeit.fake_encoder import FakeEncoder

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def write_colours(folder: Path, *, train: int = 8, val: int = 4, noise: float = 25.0) -> Path:
    """`train/` and `val/` with a class per colour, so many images of each, 16 px."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.array(colour) + rng.normal(0, noise, (16, 16, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def made_up(correct: np.ndarray, *, source: str = "a", names: str = "0" * 64, **task: Any) -> Result:
    """A result with these answers."""
    manifest = Manifest(
        num_images=len(correct), num_lost=0, num_classes=3, names_sha256=names, labels_sha256=None,
        content_sha256="1" * 64, num_hashed=len(correct),
    )  # fmt: skip
    return Result(
        task=TaskFacts(**{"name": "knn", "version": 1, "preset": "paper", "protocol": {"k": [20]}, **task}),
        model=ModelFacts(source=source, kind="fake", spec=FakeEncoder().spec),
        data=DataFacts(
            name="colours", place="data/colours", layout="folders", classes=("blue", "green", "red"),
            splits={"val": Split(manifest=manifest, used=Used(num_used=len(correct), num_unreadable=0))},
        ),
        primary="top1",
        metrics={"top1": accuracy(correct)},
        answers=Answers.of("top1", correct),
    )  # fmt: skip
