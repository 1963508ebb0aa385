"""Images per second and core of the input pipeline against the plain PIL two-view pipeline, on real or made JPEGs.

    python benchmarks/input.py [--images FOLDER] [--size 500 375] [--count 300] [--rounds 5]

Both decode a JPEG, draw one crop and flip, and render the image view (224 px, bicubic) and the tokenizer's view
(112 px, Lanczos); plain PIL also makes float tensors and normalises, as the official transforms do, while ours leaves
that to the device (a few per cent of a training step). One thread, the two take turns.
"""

import argparse
import io
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from mcbeit.augment import CropConfig, View, draw_box, read_views

VIEWS = (View(224, "bicubic"), View(112, "lanczos"))
CROP = CropConfig()
TO_IMAGE = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
TO_TOKENIZER = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])


def made_jpegs(count: int, width: int, height: int) -> list[bytes]:
    """Smooth noise; at 500 x 375 about the weight of an ImageNet photograph."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 12, (height, width, 3))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


def ours(data: bytes, seed: int) -> None:
    """The training pipeline of this project."""
    read_views(data, CROP, VIEWS, np.random.default_rng(seed))


def plain(data: bytes, seed: int) -> None:
    """Flip, crop, two resizes, two conversions: the official order of work in PIL."""
    rng = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    box = draw_box(image.height, image.width, CROP, rng)
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    TO_IMAGE(crop.resize((224, 224), Image.Resampling.BICUBIC))
    TO_TOKENIZER(crop.resize((112, 112), Image.Resampling.LANCZOS))


def main() -> None:
    """Print both rates and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG files; default: made ones")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="of made images; a phone: 4000 3000")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.images:
        files = [path.read_bytes() for path in sorted(options.images.rglob("*.jp*g"))[: options.count]]
    else:
        files = made_jpegs(options.count, *options.size)
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(options.rounds + 1):
        for name, pipeline in (("ours", ours), ("plain", plain)):
            start = time.perf_counter()
            for seed, data in enumerate(files):
                pipeline(data, seed)
            if turn:
                rates[name].append(len(files) / (time.perf_counter() - start))
    size = sum(map(len, files)) / len(files) / 1000
    ratio = median(a / b for a, b in zip(rates["ours"], rates["plain"], strict=True))
    print(f"{len(files)} JPEGs of {size:.0f} kB on average, one thread, {options.rounds} rounds (medians)")
    print(f"ours  {median(rates['ours']):.0f} images/s\nplain {median(rates['plain']):.0f} images/s\nratio {ratio:.2f}")


if __name__ == "__main__":
    main()
