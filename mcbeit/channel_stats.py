"""Mean and deviation of every channel over the pixels of a source: what `preprocess.mean` and `std` should be."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Shaped

from mcbeit.data import DataConfig
from mcbeit.errors import DataError, ImageError
from mcbeit.multichannel import decode_image
from mcbeit.probe import pick
from mcbeit.scan import scan
from mcbeit.sources import ImageSource

BLOCK = 2**20  # values that are taken as float64 at a time

PerChannel = Float64[np.ndarray, " channel"]


class Moments(NamedTuple):
    """Of some pixels: how many, their mean, the sum of the squares of their distances to it, and their range."""

    num_pixels: int
    mean: PerChannel
    squares: PerChannel
    low: PerChannel
    high: PerChannel


@dataclass(frozen=True)
class ChannelStats:
    """Of the readable images of a source."""

    num_images: int
    num_unreadable: int
    mean: list[float]
    std: list[float]
    low: list[float]
    high: list[float]

    def as_yaml(self) -> str:
        """Lines to paste into the config of a run."""
        channels = len(self.mean)
        lines = [f"# {self.num_images} images, {self.num_unreadable} unreadable ones left out"]
        lines += [f"# lowest {_row(self.low)}, highest {_row(self.high)}"]
        if constant := [number for number, std in enumerate(self.std) if std == 0]:
            lines.append(f"# channel {constant[0]} (from 0 on) is the same everywhere: its std is 0, so 1 stands here")
        lines += ["data:", f"  channels: {channels}", "preprocess:", f"  mean: {_row(self.mean)}"]
        lines += [f"  std: {_row([std or 1.0 for std in self.std])}"]
        lines += ["# in the config of a tokenizer run, mean and std belong to the section model"]
        return "\n".join(lines) + "\n"


def measure_channels(config: DataConfig, *, num_images: int | None = None, seed: int = 0) -> ChannelStats:
    """Read all images of a source, or `num_images` drawn by `seed`, and measure their channels.

    Each pixel counts the same, so large images count for more. Values are as in training: 8-bit colours in [0, 1], for
    other numbers of channels see `multichannel.py`. Raises DataError if nothing can be read.
    """
    source = config.open()
    indices = pick(source, num_images, seed)
    total: Moments | None = None
    num_readable = 0
    reasons: set[str] = set()
    for found in scan(source, indices, image_moments, config, title="stats"):
        if isinstance(found, str):
            reasons.add(found)
            continue
        total = found if total is None else combine(total, found)
        num_readable += 1
    if total is None:
        why = "; ".join(sorted(reasons)[:3])
        raise DataError(f"none of {len(indices)} images such as '{source.name(int(indices[0]))}' can be read: {why}")
    std = np.sqrt(total.squares / total.num_pixels)
    columns = (values.tolist() for values in (total.mean, std, total.low, total.high))
    return ChannelStats(num_readable, len(indices) - num_readable, *columns)


def image_moments(source: ImageSource, index: int) -> Moments | str:
    """Of one image of a source; or why it cannot be read."""
    try:
        pixels = np.asarray(decode_image(source.read(index), source.channels))
    except (ImageError, OSError) as error:
        return " ".join(str(error).split())
    return moments(pixels)


def moments(pixels: Shaped[np.ndarray, "height width channel"]) -> Moments:
    """Of all pixels of an image; 8-bit values are divided by 255."""
    flat = pixels.reshape(-1, pixels.shape[2])
    rows = max(1, BLOCK // flat.shape[1])
    total = _block(flat[:rows])
    for start in range(rows, len(flat), rows):
        total = combine(total, _block(flat[start : start + rows]))
    return total


def combine(one: Moments, other: Moments) -> Moments:
    """Of both together, without the loss of digits that sums of squares have (Chan, Golub and LeVeque, 1979)."""
    count = one.num_pixels + other.num_pixels
    apart = other.mean - one.mean
    return Moments(
        count,
        one.mean + apart * (other.num_pixels / count),
        one.squares + other.squares + apart**2 * (one.num_pixels * other.num_pixels / count),
        np.minimum(one.low, other.low),
        np.maximum(one.high, other.high),
    )


def _block(pixels: Shaped[np.ndarray, "pixel channel"]) -> Moments:
    values = pixels.astype(np.float64)
    if pixels.dtype == np.uint8:
        values /= 255
    mean = values.mean(axis=0)
    return Moments(len(values), mean, ((values - mean) ** 2).sum(axis=0), values.min(axis=0), values.max(axis=0))


def _row(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"
