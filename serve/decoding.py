"""The threads that read images, and how much memory their pixels may fill at once.

A file of 34 bytes may say that it has 50 million pixels, and decoding cannot be stopped once it runs. So large images
take at most half of the threads and of the pixels, wait in a line of their own, and that line is short.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mcbeit.serve.config import Limits
from mcbeit.serve.errors import overloaded

MEMORY = 0.9  # of the mean time per image: the share that the past keeps
LARGE_RETRY_SECONDS = 2.0

Found = TypeVar("Found")


class PixelBudget:
    """How many pixels may be decoded at the same time; who asks for more waits for others to end."""

    def __init__(self, limits: Limits) -> None:
        self._large_pixels = limits.large_pixels
        self._left = limits.pixels_in_flight
        self._left_for_large = max(limits.pixels, limits.pixels_in_flight // 2)
        self._changed = threading.Condition()

    @contextmanager
    def taking(self, pixels: int) -> Iterator[None]:
        """Hold the pixels of one image, which are within the limit of one."""
        large = pixels if pixels >= self._large_pixels else 0
        with self._changed:
            self._changed.wait_for(lambda: self._left >= pixels and self._left_for_large >= large)
            self._give(-pixels, -large)
        try:
            yield
        finally:
            with self._changed:
                self._give(pixels, large)
                self._changed.notify_all()

    def _give(self, pixels: int, large: int) -> None:
        self._left += pixels
        self._left_for_large += large


class Decoding:
    """Threads for images of all models. To be asked from one event loop."""

    def __init__(self, threads: int, limits: Limits) -> None:
        self.budget = PixelBudget(limits)
        self.seconds_per_item = 0.0  # of ordinary images that had to be decoded, with all threads at work
        self._limits, self._threads, self._waiting_large = limits, threads, 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._large_pool = ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="read-large")

    def is_large(self, pixels: int) -> bool:
        """Whether an image is to take the other line."""
        return pixels >= self._limits.large_pixels

    async def run(self, work: Callable[[], Found]) -> Found:
        """Do something that is done soon in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def run_large(self, work: Callable[[], Found]) -> Found:
        """Decode a large image. Raises RequestError (429) if many are waiting."""
        if self._waiting_large >= self._limits.waiting_large:
            raise overloaded(f"{self._waiting_large} large images are waiting already", LARGE_RETRY_SECONDS)
        self._waiting_large += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._large_pool, work)
        finally:
            self._waiting_large -= 1

    def learn(self, seconds: float) -> None:
        """An ordinary image took so long in its thread."""
        found = seconds / self._threads
        self.seconds_per_item = (
            MEMORY * self.seconds_per_item + (1 - MEMORY) * found if self.seconds_per_item else found
        )

    def close(self) -> None:
        """End when the images that are being decoded are done."""
        for pool in (self._pool, self._large_pool):
            pool.shutdown(wait=False, cancel_futures=True)
