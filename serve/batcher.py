"""The micro-batcher: images of all requests that wait while the model computes go through it together next.

It never waits for more images when the model is idle. Batches have few sizes, so that the memory of ONNX Runtime does
not grow with every new shape: the largest power of two that is waiting, or padded up to one where that is cheap.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from mcbeit.serve.config import BatchConfig
from mcbeit.serve.errors import RequestError

SMOOTHING = 0.2  # of the last batch in the mean of seconds per image
LOGGER = logging.getLogger("mcbeit.serve")

Compute = Callable[[np.ndarray, bool], np.ndarray]  # pixels of a batch, patches or not -> numbers; in one thread
Observe = Callable[[int, float], None]  # hears of every batch: images, seconds


@dataclass
class Item:
    """An image that waits, and what became of it."""

    pixels: np.ndarray
    patches: bool
    vector: "asyncio.Future[np.ndarray]"
    arrived: float = field(default_factory=time.perf_counter)
    queue_seconds: float = 0.0
    infer_seconds: float = 0.0
    batch_size: int = 0


class MicroBatcher:
    """A queue before one model, which `executor`, of a single thread, computes. To be used in one event loop."""

    def __init__(
        self, compute: Compute, executor: Executor, config: BatchConfig, *, pad: bool, observe: Observe | None = None
    ) -> None:
        self._compute, self._executor, self._config, self._pad = compute, executor, config, pad
        self._observe = observe or (lambda size, seconds: None)
        self._waiting: deque[Item] = deque()
        self._awake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self.num_batches = 0
        self.seconds_per_item = 0.0  # a mean of late; 0 before the first batch
        self.last_success: float | None = None  # time.monotonic of the last batch that gave numbers

    @property
    def num_waiting(self) -> int:
        """Images in the queue."""
        return len(self._waiting)

    async def submit(self, pixels: np.ndarray, *, patches: bool = False) -> Item:
        """Wait for the vector of one image. Who is cancelled while waiting is not computed.

        Raises RequestError if the model fails for this image, or gives numbers that are not finite.
        """
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._work(), name="micro-batcher")
        item = Item(pixels, patches, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._awake.set()
        await item.vector
        return item

    async def close(self) -> None:
        """End. Who still waits gets a RequestError."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            self._worker = None
        _stop(self._waiting)
        self._waiting.clear()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._awake.clear()
                await self._awake.wait()
            batch = self._take()
            try:
                await self._run(batch)
            finally:
                _stop(batch)  # those that have no answer yet: `close` has cancelled this

    def _take(self) -> list[Item]:
        """The next batch: the oldest images that want the same, without those whose callers have left."""
        waiting = [item for item in self._waiting if not item.vector.done()]
        alike = [item for item in waiting if item.patches == waiting[0].patches]
        batch = alike[: self._size(len(alike))] if alike else []
        taken = set(map(id, batch))
        self._waiting = deque(item for item in waiting if id(item) not in taken)
        return batch

    def _size(self, waiting: int) -> int:
        most = self._config.max_size
        if self.seconds_per_item:
            most = min(most, max(1, int(self._config.max_seconds / self.seconds_per_item)))
        size = min(waiting, most)
        return size if self._pad else _power_of_two(size)

    async def _run(self, batch: list[Item]) -> None:
        if not batch:
            return
        try:
            await self._compute_all(batch)
        except Exception:
            LOGGER.exception("the model failed for a batch of %d", len(batch))
            for item in batch:
                await self._compute_alone(item)

    async def _compute_alone(self, item: Item) -> None:
        """So that a failure is of the image that causes it, and of no other."""
        try:
            await self._compute_all([item])
        except Exception:
            LOGGER.exception("the model failed for one image")
            _fail(item, RequestError(500, "inference_failed", "the model failed for this image"))

    async def _compute_all(self, batch: list[Item]) -> None:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self._executor, self._numbers, [item.pixels for item in batch],
                                             batch[0].patches)  # fmt: skip
        seconds = time.perf_counter() - started
        self.learn(len(batch), seconds)
        for item, vector in zip(batch, vectors, strict=True):
            item.queue_seconds, item.infer_seconds = started - item.arrived, seconds
            item.batch_size = len(batch)
            if not np.isfinite(vector).all():
                _fail(
                    item, RequestError(422, "not_finite", "the model gives numbers for this image that are not finite")
                )
            elif not item.vector.done():
                item.vector.set_result(vector)

    def _numbers(self, images: list[np.ndarray], patches: bool) -> np.ndarray:
        pixels = np.stack(images)
        if self._pad and (missing := _power_of_two(len(images), up=True) - len(images)):
            pixels = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), pixels.dtype)])
        return self._compute(pixels, patches)[: len(images)]

    def learn(self, size: int, seconds: float) -> None:
        """A batch gave numbers after so many seconds."""
        self.last_success = time.monotonic()
        self.num_batches += 1
        each = seconds / size
        self.seconds_per_item += (each - self.seconds_per_item) * (SMOOTHING if self.seconds_per_item else 1.0)
        self._observe(size, seconds)


def _stop(items: Iterable[Item]) -> None:
    for item in items:
        _fail(item, RequestError(503, "stopping", "the service is stopping; ask another one", retry_after=1.0))


def _fail(item: Item, error: RequestError) -> None:
    if not item.vector.done():
        item.vector.set_exception(error)


def _power_of_two(size: int, *, up: bool = False) -> int:
    return 1 << ((size - 1).bit_length() if up else size.bit_length() - 1)
