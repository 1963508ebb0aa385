"""Stand-ins for ImageNet-A, -R, -V2, -C and ReaL, in the layouts in which they are distributed."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")
COLOURS = ((40, 60, 200), (40, 180, 60), (200, 50, 40), (200, 200, 60))


def write_picture(path: Path, colour: Sequence[int], seed: int = 0) -> None:
    """A noisy colour, 16 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(colour) + np.random.default_rng(seed).normal(0, 12, (16, 16, 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_imagenet(folder: Path, *, train: int = 6, val: int = 2) -> Path:
    """Four classes; validation images are numbered over all of them, as those of ImageNet are."""
    for label, (wnid, colour) in enumerate(zip(WNIDS, COLOURS, strict=True)):
        for i in range(train):
            write_picture(folder / "train" / wnid / f"{wnid}_{i}.JPEG", colour, i)
        for i in range(val):
            number = 1 + label + i * len(WNIDS)
            write_picture(folder / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG", colour, 100 + i)
    return folder


def write_classes(folder: Path, colours: dict[str, Sequence[int]], *, count: int = 3) -> Path:
    """CLASS/IMAGE, with the text beside them that ImageNet-A and -R have."""
    for name, colour in colours.items():
        for i in range(count):
            write_picture(folder / name / f"0.00{i}_{name}_1.0.jpg", colour, 200 + i)
    (folder / "README.txt").write_text("about")
    return folder


def write_corruptions(
    folder: Path, names: Sequence[str], *, severities: Sequence[int] = (1, 2, 3, 4, 5), wrong_from: int = 6
) -> Path:
    """CORRUPTION/SEVERITY/CLASS/IMAGE; from a severity on, images show the next class."""
    for name in names:
        for severity in severities:
            for label, wnid in enumerate(WNIDS):
                shown = COLOURS[(label + (severity >= wrong_from)) % len(WNIDS)]
                write_picture(
                    folder / name / str(severity) / wnid / f"ILSVRC2012_val_{label + 1:08}.JPEG", shown, severity
                )
    return folder


def write_real(path: Path, labels: Sequence[Sequence[int]]) -> Path:
    """real.json."""
    path.write_text(json.dumps(labels))
    return path
