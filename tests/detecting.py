"""A small detector, and pictures of rectangles for it, marked as COCO marks its own."""

from typing import Any

import torch
from torch import Tensor

from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.vit import ModelConfig

SIZE = 64  # pixels, in patches of 8, of which windows have 4 x 4


def tiny_detector(*, drop_path: float = 0.0, size: int = SIZE, **options: Any) -> MaskRCNN:
    """Three classes; `options` are those of DetectorConfig."""
    backbone = WindowedBackbone(
        ModelConfig(dim=32, depth=8, num_heads=2, patch_size=8, drop_path=drop_path, init="xavier"),
        image_size=size,
        window=4,
    )
    small = {"channels": 16, "head_dim": 32, "anchor_samples": 64, "region_samples": 32}
    return MaskRCNN(backbone, 3, DetectorConfig(**{**small, **options}))


def scene(*boxes: tuple[int, int, int, int], size: int = SIZE) -> tuple[Tensor, dict[str, Tensor]]:
    """A grey image with a bright rectangle of class 1 at each box, and what is marked in it."""
    image = torch.full((3, size, size), 90, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
        image[:, top:bottom, left:right] = 220
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "masks": masks,
    }
    return image, target
