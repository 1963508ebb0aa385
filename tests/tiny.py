"""Runs that take a second: two classes of coloured shapes, a small tokenizer, a small backbone."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw

from mcbeit.config import validate
from mcbeit.finetune_setup import FinetuneConfig
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.stop import StopRequest
from mcbeit.tokenizer_training import TokenizerConfig
from mcbeit.worker import Worker

NUM_IMAGES = 24


def write_shapes(folder: Path, *, count: int = NUM_IMAGES, seed: int = 0) -> Path:
    """An ImageFolder of discs and squares, 24 px, RGB, `count` images in all."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        kind = ("disc", "square")[index % 2]
        image = Image.new("RGB", (24, 24), tuple(int(c) for c in rng.integers(0, 256, 3)))
        left, top = (int(c) for c in rng.integers(1, 9, 2))
        draw, colour = ImageDraw.Draw(image), tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.ellipse if kind == "disc" else draw.rectangle)((left, top, left + 12, top + 12), fill=colour)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image.save(folder / kind / f"{index:03d}.png")
    return folder


def tokenizer_config(source: Path, run: Path, **changes: Any) -> TokenizerConfig:
    """16 codes, one per 4 px of 16 px crops, 6 steps; `changes` replace whole sections."""
    values: dict[str, Any] = {
        "run": str(run),
        "data": {"source": str(source), "num_workers": 0},
        "image_size": 16,
        "model": {"stride": 4, "vocab_size": 16, "dim": 16, "num_blocks": 0},
        "optim": {"steps": 6, "batch_size": 8, "lr": 3e-3, "weight_decay": 0},
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return validate(TokenizerConfig, {**values, **changes})


BACKBONE = {
    "dim": 32,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "position": "relative+sincos",
    "init": "xavier",
}


def pretrain_config(source: Path, tokenizer: Path | str, run: Path, /, **changes: Any) -> PretrainConfig:
    """A backbone of 2 blocks and width 32 on 16 px images with 4 x 4 patches, 6 steps in 2 epochs."""
    values: dict[str, Any] = {
        "run": str(run),
        "data": {"source": str(source), "num_workers": 0},
        "preprocess": {"image_size": 16, "crop_fraction": 1.0},
        "tokenizer": {"kind": "dvae", "path": str(tokenizer)},
        "model": BACKBONE,
        "objective": {"target_perplexity": 2},
        "optim": {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 8, "lr": 1e-3},
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return validate(PretrainConfig, {**values, **changes})


def finetune_config(source: Path, run: Path, /, **changes: Any) -> FinetuneConfig:
    """A classifier from scratch on images of 16 px, tested on those that it learns from, 6 steps in 2 epochs."""
    values: dict[str, Any] = {
        "run": str(run),
        "init": "random",
        "data": {"source": str(source), "num_workers": 0},
        "preprocess": {"image_size": 16, "crop_fraction": 1.0},
        "model": BACKBONE,
        "optim": {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 8, "lr": 1e-3},
        "log": {"every_steps": 2, "tensorboard": False},
        "eval": {"source": str(source)},
    }
    return validate(FinetuneConfig, {**values, **changes})


def stopped_after(steps: int) -> Worker:
    """A worker that is asked to stop then."""

    class Soon(StopRequest):
        calls = 0

        def __call__(self) -> bool:
            self.calls += 1
            self.signal = signal.SIGINT if self.calls >= steps else None
            return super().__call__()

    return Worker(stop=Soon())


CHANNELS = {  # what a run on the images of `write_planes` says of them
    "data": {"channels": 5, "num_workers": 0},
    "preprocess": {
        "image_size": 16,
        "crop_fraction": 1.0,
        "mean": [0.2, 0.3, 0.4, 0.5, 0.6],
        "std": [0.1, 0.2, 0.2, 0.2, 0.1],
    },
}


def write_planes(folder: Path, *, count: int = NUM_IMAGES, seed: int = 0) -> Path:
    """An ImageFolder of two classes, .npy and TIFF files in turn: 24 px, 5 channels of uint16."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        bright = index % 2
        values = rng.integers(0, 20000, (24, 24, 5)).astype(np.uint16)
        values[4:16, 6:20, 3 * bright] += 40000
        path = folder / ("dark", "bright")[bright] / f"{index:03d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 4 < 2:
            np.save(path.with_suffix(".npy"), values)
        else:
            tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")
    return folder
