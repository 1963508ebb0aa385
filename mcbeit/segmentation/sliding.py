"""Scores of images of any size from a model of square windows: slide, average the scores, scale back.

As in the published ADE20K evaluation: windows start every `stride` pixels, the last one of a row at the border; where
windows overlap, scores are averaged before any softmax. An image smaller than a window is padded.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mcbeit.errors import ConfigError
from mcbeit.segmentation.scene_crops import padded

Windows = Shaped[Tensor, "window channel size size"]
Score = Callable[[Windows], Float[Tensor, "window class size size"]]
MAX_SCORES = 2**24  # of an image that are scaled back at once: 64 MB


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
    """The averaged scores of every pixel; `fill` is what a channel is padded with, by default 0.

    `stride` is at most `size`, see `check_stride`.
    """
    assert stride <= size
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


def best_class(looks: Sequence[Float[Tensor, "class _ _"]], height: int, width: int) -> Int64[Tensor, "height width"]:
    """The class of every pixel of an image by scores of other sizes; of several looks, probabilities are averaged.

    Scores are scaled bilinearly, corners not aligned, a band of rows at a time: those of 150 classes for every pixel of
    a photograph would be gigabytes.
    """
    wide = [
        F.interpolate(scores[None], size=(scores.shape[1], width), mode="bilinear", align_corners=False)[0]
        for scores in looks
    ]
    found = torch.zeros((height, width), dtype=torch.int64, device=wide[0].device)
    band = max(1, MAX_SCORES // (len(wide[0]) * width))
    for top in range(0, height, band):
        rows = torch.arange(top, min(top + band, height), device=found.device)
        if len(wide) == 1:
            scores = _rows(wide[0], rows, height)
        else:
            scores = torch.stack([_rows(one, rows, height).softmax(dim=0) for one in wide]).sum(dim=0)
        found[rows] = scores.argmax(dim=0)
    return found


def check_stride(stride: int, size: int, *, key: str) -> None:
    """Raises ConfigError if windows of `size` pixels every `stride` pixels would leave some out."""
    if stride > size:
        raise ConfigError(f"{key}={stride} is more than a window, {size} pixels: pixels between windows have no class")


def _rows(
    scores: Float[Tensor, "class h width"], rows: Int64[Tensor, " row"], height: int
) -> Float[Tensor, "class row width"]:
    """Some rows of the scores of an image of another height."""
    place = ((rows + 0.5) * (scores.shape[1] / height) - 0.5).clamp(0, scores.shape[1] - 1)
    upper = place.floor().long()
    lower, share = (upper + 1).clamp(max=scores.shape[1] - 1), (place - upper)[None, :, None].to(scores.dtype)
    return scores[:, upper] * (1 - share) + scores[:, lower] * share


def _batches(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
