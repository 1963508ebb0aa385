"""Images per second of several ways to compute the same, measured in turn, so that a busy machine is fair to all."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from mcbeit.model_folder import Speed

BATCH_SIZES = (1, 8)
SECONDS = 1.0  # about, per way and batch size
MAX_ROUNDS = 50


def measure_speed(
    ways: Mapping[str, Callable[[np.ndarray], object]], pixels: np.ndarray, *, seconds: float = SECONDS
) -> list[Speed]:
    """The best of several rounds for each way and batch size, after one round that does not count."""
    return [speed for size in BATCH_SIZES for speed in _at(ways, pixels[:size], seconds)]


def _at(ways: Mapping[str, Callable[[np.ndarray], object]], batch: np.ndarray, seconds: float) -> list[Speed]:
    first = {name: _time(way, batch) for name, way in ways.items()}
    rounds = min(MAX_ROUNDS, max(3, int(seconds * len(ways) / max(sum(first.values()), 1e-9))))
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = min(best[name], _time(way, batch))
    return [Speed(runtime=name, batch_size=len(batch), images_per_second=len(batch) / best[name]) for name in ways]


def _time(way: Callable[[np.ndarray], object], batch: np.ndarray) -> float:
    start = time.perf_counter()
    way(batch)
    return time.perf_counter() - start
