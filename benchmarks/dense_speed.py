"""Images per second of segmentation and detection, in training and in testing, and the time of COCO's scores.

    python benchmarks/dense_speed.py [--size tiny|base] [--pixels 512] [--steps 3]

Models have random weights. Segmentation learns crops and tests images of the given size; so does detection. Scores are
those of made-up detections of --images images by pycocotools and by faster-coco-eval, in turn, so that a busy machine
slows both; a ratio is the median over the rounds. Threads are those that OMP_NUM_THREADS allows.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from mcbeit.config import validate
from mcbeit.detection.coco_scores import Backend, score
from mcbeit.detection.rle import encode
from mcbeit.detection.setup import DetectionConfig, make_detector
from mcbeit.device import choose_device, choose_precision, device_name
from mcbeit.machine import cpu_name
from mcbeit.segmentation.judging import find_classes
from mcbeit.segmentation.setup import SegmentationConfig, make_segmenter

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", choices=("tiny", "small", "base", "large"))
    parser.add_argument("--pixels", type=int, action="append")
    parser.add_argument("--batch-size", type=int, default=2, help="at least 2, for the batch norms of UperNet")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--images", type=int, default=500, help="of COCO's scores; 0: leave them out")
    options = parser.parse_args()
    if options.batch_size < 2:
        parser.error(f"--batch-size is {options.batch_size}; batch norms need at least 2")
    device = choose_device()
    precision = choose_precision(options.precision, device)
    place = cpu_name() if device.type == "cpu" else device_name(device)
    print(
        f"{place}, {torch.get_num_threads()} threads, ViT-{options.size}, {precision.name}, batch {options.batch_size}"
    )
    for pixels in options.pixels or (512,):
        segmentation_speed(options, pixels, device, precision)
        detection_speed(options, pixels, device, precision)
    if options.images:
        scoring_speed(options.images)


def segmentation_speed(options: argparse.Namespace, pixels: int, device: torch.device, precision: Any) -> None:
    values = {"model": {"size": options.size}, "preprocess": {"image_size": pixels}, "init": "random"}
    config = validate(SegmentationConfig, values)
    model = make_segmenter(config, 150).to(device)
    images = torch.randn(options.batch_size, 3, pixels, pixels, device=device)
    labels = torch.randint(0, 150, (options.batch_size, pixels, pixels), device=device)
    dice = torch.rand(options.batch_size, model.num_dice, device=device)

    def step() -> None:
        model.train().zero_grad()
        with precision.autocast(device):
            scores = model(images, dice)
        model.loss(scores, labels).backward()

    whole = np.random.default_rng(0).integers(0, 256, (pixels, pixels * 4 // 3, 3)).astype(np.uint8)
    scenes = config.scenes.model_copy(update={"short_side": pixels, "long_side": 4 * pixels})

    def test() -> None:
        find_classes(model, whole, scenes, config.preprocess, config.windows, precision)

    tell(f"segmentation, {pixels} px, training step", seconds_of(step, options.steps, device) / options.batch_size)
    tell(f"segmentation, {pixels} px, testing, image of 4:3 by windows", seconds_of(test, options.steps, device))


def detection_speed(options: argparse.Namespace, pixels: int, device: torch.device, precision: Any) -> None:
    values = {"model": {"size": options.size}, "preprocess": {"image_size": pixels}, "init": "random"}
    model = make_detector(validate(DetectionConfig, values), CLASSES).to(device)
    images = torch.randint(0, 256, (options.batch_size, 3, pixels, pixels), dtype=torch.uint8, device=device)
    dice = torch.rand(options.batch_size, model.num_dice, device=device)
    targets = [objects(pixels, seed, device) for seed in range(options.batch_size)]

    def step() -> None:
        model.train().zero_grad()
        with precision.autocast(device):
            losses = model(images, targets, dice)
        torch.stack([value.float() for value in losses.values()]).sum().backward()

    def test() -> None:
        model.eval()
        with precision.autocast(device):
            model.detect(images)

    tell(f"detection, {pixels} px, training step", seconds_of(step, options.steps, device) / options.batch_size)
    tell(f"detection, {pixels} px, testing", seconds_of(test, options.steps, device) / options.batch_size)


def objects(pixels: int, seed: int, device: torch.device, count: int = 8) -> dict[str, torch.Tensor]:
    """As many as COCO's images have: rectangles."""
    rng, masks = np.random.default_rng(seed), torch.zeros(count, pixels, pixels, dtype=torch.uint8)
    corners = torch.from_numpy(rng.integers(0, pixels * 3 // 4, (count, 2)))
    sides = torch.from_numpy(rng.integers(pixels // 16, pixels // 4, (count, 2)))
    boxes = torch.cat([corners, corners + sides], dim=1)
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.from_numpy(rng.integers(0, CLASSES, count))
    return {"boxes": boxes.float().to(device), "labels": labels.to(device), "masks": masks.to(device)}


def seconds_of(work: Callable[[], None], count: int, device: torch.device) -> float:
    """The median of a few, after one to warm up."""
    took = []
    for _ in range(count + 1):
        before = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - before)
    return median(took[1:])


def tell(name: str, seconds: float) -> None:
    print(f"{name:58} {1 / seconds:8.2f} images/s", flush=True)


def scoring_speed(num_images: int, rounds: int = 3) -> None:
    """Both backends on 100 detections per image, of 80 classes."""
    truth, found = made_up(num_images)
    took: dict[Backend, list[float]] = {"pycocotools": [], "fast": []}
    stats: dict[Backend, list[float | None]] = {}
    for _ in range(rounds):
        for backend, seconds in took.items():
            before = time.perf_counter()
            scores = score(truth, found, backend=backend)
            seconds.append(time.perf_counter() - before)
            stats[backend] = [value for kind in scores.values() for value in kind.stats.values()]
    ratio = median(slow / fast for slow, fast in zip(took["pycocotools"], took["fast"], strict=True))
    pairs = zip(stats["pycocotools"], stats["fast"], strict=True)
    apart = max(abs(a - b) for a, b in pairs if a is not None and b is not None)
    print(
        f"COCO's scores of boxes and masks, {num_images} images, {len(found):,} detections: pycocotools "
        f"{median(took['pycocotools']):.2f} s, faster-coco-eval {median(took['fast']):.2f} s, x {ratio:.2f}; the 24 "
        f"numbers differ by at most {apart:.1e}"
    )


def made_up(num_images: int, side: int = 240) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations, and detections near some of them."""
    rng, annotations, found = np.random.default_rng(0), [], []
    for image in range(1, num_images + 1):
        for _ in range(100):
            left, top, width, height = (
                int(v) for v in (*rng.integers(0, side // 2, 2), *rng.integers(8, side // 2, 2))
            )
            mask, category = np.zeros((side, side), bool), int(rng.integers(1, CLASSES + 1))
            mask[top : top + height, left : left + width] = True
            entry = {"image_id": image, "category_id": category, "segmentation": encode(mask)}
            if rng.random() < 0.08:
                shape = {"bbox": [left + 1.0, top, width, height], "area": float(mask.sum()), "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **entry, **shape})
            found.append({**entry, "bbox": [float(left), top, width, height], "score": float(rng.random())})
    images = [{"id": image, "height": side, "width": side} for image in range(1, num_images + 1)]
    categories = [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, found


if __name__ == "__main__":
    main()
