"""Scores of images of any size from a model of square windows: slide, average the scores, scale back.

As in the published ADE20K evaluation: windows start every `stride` pixels, the last one of a row at the border; where
windows overlap, scores are averaged before any softmax. An image smaller than a window is padded.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mcbeit.segmentation.scene_crops import padded

Windows = Shaped[Tensor, "window channel size size"]
Score = Callable[[Windows], Float[Tensor, "window class size size"]]
MAX_SCORES = 2**26  # scores of an image that are scaled back at once: 256 MB


def starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along a side."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - size, 0)) for i in range(count)]


def slide(
    image: Shaped[Tensor, "channel height width"],
    score: Score,
    *,
    size: int,
    stride: int,
    batch_size: int,
    fill: Sequence[float] | None = None,
) -> Float[Tensor, "class height width"]:
    """The averaged scores of every pixel; `fill` is what a channel is padded with, by default 0."""
    height, width = image.shape[-2:]
    image = padded(image, size, [0.0] * len(image) if fill is None else fill)
    places = [(top, left) for top in starts(height, size, stride) for left in starts(width, size, stride)]
    total = counts = None
    for part in _batches(places, batch_size):
        found = score(torch.stack([image[:, top : top + size, left : left + size] for top, left in part]))
        if total is None or counts is None:
            total = found.new_zeros(found.shape[1], *image.shape[-2:])
            counts = found.new_zeros(image.shape[-2:])
        for one, (top, left) in zip(found, part, strict=True):
            total[:, top : top + size, left : left + size] += one
            counts[top : top + size, left : left + size] += 1
    assert total is not None
    assert counts is not None
    return (total / counts)[:, :height, :width]


def best_class(scores: Float[Tensor, "class h w"], height: int, width: int) -> Int64[Tensor, "height width"]:
    """The class with the highest score at every pixel of an image of another size; a few classes are scaled at once."""
    at_once = max(1, MAX_SCORES // (height * width))
    best = torch.full((height, width), -torch.inf, device=scores.device)
    found = torch.zeros((height, width), dtype=torch.int64, device=scores.device)
    for first in range(0, len(scores), at_once):
        values, classes = scaled(scores[first : first + at_once], height, width).max(dim=0)
        is_better = values > best
        best, found = torch.where(is_better, values, best), torch.where(is_better, classes + first, found)
    return found


def scaled(scores: Float[Tensor, "class h w"], height: int, width: int) -> Float[Tensor, "class height width"]:
    """Bilinear, corners not aligned."""
    return F.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def _batches(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
