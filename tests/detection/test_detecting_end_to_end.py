"""From annotated images to a score: a small detector learns four pictures, and COCO's tools say how well."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cocos import annotation, content
from detecting import SIZE, tiny_detector
from images import encode as encode_image

from mcbeit.data import batch_keys, make_loader
from mcbeit.detection.coco import CocoSource, open_coco_splits
from mcbeit.detection.coco_results import CocoResults
from mcbeit.detection.coco_scores import score
from mcbeit.detection.dataset import DetectionDataset, load_whole
from mcbeit.detection.large_scale_jitter import JitterConfig
from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.rle import box, encode

HEIGHT, WIDTH = 96, 128  # of the pictures: the detector sees them half as large, with padding below
STEPS, LR = 50, 1e-2


def write_pictures(root: Path) -> Path:
    """Four pictures of a red disc and a blue square each, to learn from and to be tested on."""
    rng, annotations = np.random.default_rng(0), []
    for folder in ("train2017", "val2017", "annotations"):
        (root / folder).mkdir()
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    for image in range(1, 5):
        pixels = rng.integers(60, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for half, (category, colour) in enumerate(((3, (230, 80, 60)), (17, (70, 120, 240)))):
            radius = int(rng.integers(14, 22))
            row, column = rng.integers(radius, HEIGHT - radius), rng.integers(radius, 64 - radius) + 64 * half
            far = np.stack(np.broadcast_arrays(abs(rows - row), abs(columns - column)))
            mask = (far**2).sum(axis=0) <= radius**2 if category == 3 else far.max(axis=0) < radius
            pixels[mask] = colour
            shape = {"segmentation": encode(mask), "area": float(mask.sum())}
            annotations.append(annotation(len(annotations) + 1, image, category, box(mask), **shape))
        for folder in ("train2017", "val2017"):
            (root / folder / f"{image:012}.png").write_bytes(encode_image(pixels))
    values = content(dict.fromkeys(range(1, 5), (HEIGHT, WIDTH)), annotations)
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(values))
    return root


def train(model: MaskRCNN, source: CocoSource) -> None:
    jitter = JitterConfig(scale=(1.0, 1.0), flip=0.0)
    data = DetectionDataset(source, seed=0, size=SIZE, jitter=jitter, num_dice=model.num_dice)
    optimizer = torch.optim.AdamW(model.train().parameters(), weight_decay=0.05)
    for step, batch in enumerate(make_loader(data, batch_keys(4, 4, 0, range(STEPS)), 4, num_workers=0, pin=False)):
        optimizer.param_groups[0]["lr"] = LR * min(1, (step + 1) / 5) * (1 + math.cos(math.pi * step / STEPS)) / 2
        losses = model(batch.views[0], batch.targets, batch.dice)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_detector__learns_pictures_and_is_scored_by_its_results_file(tmp_path: Path) -> None:
    splits = open_coco_splits(write_pictures(tmp_path))
    torch.manual_seed(0)
    model = tiny_detector(num_detections=20)
    train(model, splits.train)
    results = CocoResults(splits.val.category_ids)
    model.eval()
    for index in range(len(splits.val)):
        (found,) = model.detect(load_whole(splits.val, index, SIZE)[None])
        height, width = splits.val.size_of(index)
        results.add(int(splits.val.image_ids[index]), height, width, found.in_image(height, width, SIZE))
    results.write(tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    assert {entry["category_id"] for entry in entries} <= {3, 17, 90}
    assert all(entry["bbox"][1] + entry["bbox"][3] <= HEIGHT + 1e-3 for entry in entries)
    official, fast = (score(splits.val.file.path, entries, backend=name) for name in ("pycocotools", "fast"))
    assert official["segm"].stats["AP"] > 0.2
    assert official["segm"].stats["AP50"] > 0.6
    assert official["bbox"].stats["AP"] > 0.2
    assert official["segm"].by_class["bar"] is None
    assert official["segm"].stats == pytest.approx(fast["segm"].stats, abs=5e-7)
