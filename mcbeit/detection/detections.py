"""What was found in an image, and where that is in the image as it was before it was resized and padded."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

THRESHOLD = 0.5  # of the probability that a pixel belongs to the object


class Detections(NamedTuple):
    """The objects of one image, the surest first."""

    boxes: Float[Tensor, "object 4"]  # left, top, right, bottom in pixels
    scores: Float[Tensor, " object"]
    labels: Int64[Tensor, " object"]  # from 0
    masks: Float[Tensor, "object side side"]  # probabilities in the box

    def in_image(self, height: int, width: int, size: int) -> "Detections":
        """The same for an image of `height` x `width` pixels, whose longer side was resized to `size`.

        One factor scales both axes, whatever rounding did to the shorter one. Boxes are cut at the edges of the image;
        those that lie in the padding are left out (as MIMDet's `lsj_postprocess` does).
        """
        boxes = self.boxes * (max(height, width) / size)
        limits = boxes.new_tensor([width, height, width, height])
        boxes = boxes.clamp(min=0).minimum(limits)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Detections(boxes[kept], self.scores[kept], self.labels[kept], self.masks[kept])

    def to(self, device: torch.device) -> "Detections":
        """The same on a device."""
        return Detections(*(values.to(device) for values in self))

    def pasted(self, height: int, width: int) -> Iterator[Bool[Tensor, "height width"]]:
        """The mask of each object in an image of this size, one after the other.

        Each pixel's centre reads the mask bilinearly, with zeros around it: detectron2's way, which is exact where
        torchvision rounds boxes to pixels.
        """
        for mask, (left, top, right, bottom) in zip(self.masks, self.boxes.tolist(), strict=True):
            columns = range(max(math.floor(left), 0), min(math.ceil(right), width))
            rows = range(max(math.floor(top), 0), min(math.ceil(bottom), height))
            x = (torch.arange(columns.start, columns.stop, device=mask.device) + 0.5 - left) / (right - left) * 2 - 1
            y = (torch.arange(rows.start, rows.stop, device=mask.device) + 0.5 - top) / (bottom - top) * 2 - 1
            places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
            found = F.grid_sample(mask[None, None], places, align_corners=False)[0, 0]
            whole = torch.zeros(height, width, dtype=torch.bool, device=mask.device)
            whole[rows.start : rows.stop, columns.start : columns.stop] = found >= THRESHOLD
            yield whole
