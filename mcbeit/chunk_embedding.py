"""From images to rows, in this process: threads decode while the encoder computes."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice

import numpy as np
from jaxtyping import Shaped

from mcbeit.chunks import Chunk, Plan, Unreadable
from mcbeit.data import auto_workers
from mcbeit.embed_task import Task
from mcbeit.encoder import EncoderSpec, PixelEncoder
from mcbeit.errors import ImageError
from mcbeit.sources import ImageSource

AT_ONCE = 2  # chunks: while one is computed, the images of the other are decoded
AHEAD_BATCHES = 2  # that are decoded before they are needed, per chunk
AHEAD_BYTES = 2**28  # that these may take, if one batch is not more
POLL_SECONDS = 0.2  # between looks at whether somebody wants a stop

Decoded = Shaped[np.ndarray, "size size channel"] | Unreadable
Stop = Callable[[], bool]


class Stopped(Exception):
    """A chunk was not finished, because nobody wants it any more."""


class ChunkEmbedder:
    """Makes the rows of chunks; may be called from several threads, which take turns at the encoder.

    Threads decode, not processes: Pillow lets go of Python's lock while it decodes and resizes, and pixels need not be
    sent from one process to another.
    """

    def __init__(
        self, source: ImageSource, encoder: PixelEncoder, *, patches: bool, batch_size: int, threads: int
    ) -> None:
        self.source, self.encoder, self.patches, self.batch_size = source, encoder, patches, batch_size
        size, channels = encoder.spec.image_size, encoder.spec.preprocess.channels
        fitting = AHEAD_BYTES // (size * size * channels * (1 if channels == 3 else 4))
        self._ahead = max(batch_size, min(AHEAD_BATCHES * batch_size, fitting))
        self._pool = ThreadPoolExecutor(max(threads, 1), thread_name_prefix="decode")
        self._turn = threading.Lock()
        self._is_stopped = threading.Event()

    def embed(self, number: int, images: Iterable[int]) -> Chunk:
        """The rows of some images. Raises Stopped after `stop`."""
        unreadable: list[Unreadable] = []
        good: list[int] = []
        rows = [self._compute(batch) for batch in self._batches(images, good, unreadable)]
        empty = np.zeros((0, *row_shape(self.encoder.spec, patches=self.patches)), np.float32)
        return Chunk(number, np.array(good, np.int64), np.concatenate(rows) if rows else empty, unreadable)

    def stop(self) -> None:
        """Let chunks that are being made be given up."""
        self._is_stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop, and wait for the threads that decode."""
        self.stop()
        self._pool.shutdown()

    def _compute(self, batch: list[np.ndarray]) -> np.ndarray:
        pixels = np.stack(batch)
        with self._turn:
            if self._is_stopped.is_set():
                raise Stopped
            return self.encoder.compute(pixels, patches=True) if self.patches else self.encoder.embed_pixels(pixels)

    def _batches(
        self, images: Iterable[int], good: list[int], unreadable: list[Unreadable]
    ) -> Iterator[list[np.ndarray]]:
        """Batches of readable images; which images they are is noted in `good`, the others in `unreadable`."""
        batch: list[np.ndarray] = []
        for image, found in self._decode_ahead(images):
            if isinstance(found, Unreadable):
                unreadable.append(found)
                continue
            good.append(image)
            batch.append(found)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _decode_ahead(self, images: Iterable[int]) -> Iterator[tuple[int, Decoded]]:
        rest = iter(images)
        waiting = deque((image, self._submit(image)) for image in islice(rest, self._ahead))
        while waiting:
            image, future = waiting.popleft()
            waiting.extend((more, self._submit(more)) for more in islice(rest, 1))
            yield image, future.result()

    def _submit(self, image: int) -> Future[Decoded]:
        if self._is_stopped.is_set():
            raise Stopped
        return self._pool.submit(self._decode, image)

    def _decode(self, image: int) -> Decoded:
        try:
            return self.encoder.spec.preprocess.pixels(self.source.read(image))
        except (ImageError, OSError) as error:
            return Unreadable(image, " ".join(str(error).split()))


def row_shape(spec: EncoderSpec, *, patches: bool) -> tuple[int, ...]:
    """The shape of what an image becomes: (dim,), or (rows, columns, dim) of patch features."""
    return (*spec.grid, spec.patch_dim) if patches else (spec.dim,)


class LocalCrew:
    """This process, as what makes chunks."""

    def __init__(self, task: Task, source: ImageSource, encoder: PixelEncoder | None = None) -> None:
        """`encoder`: the task's, if it is open already."""
        self.task, self.source = task, source
        self.encoder = encoder or task.open_encoder()
        self.spec, self.notes = self.encoder.spec, self.encoder.notes

    def chunks(self, plan: Plan, numbers: Iterable[int], stop: Stop) -> Generator[Chunk]:
        """These chunks in their order; none after `stop` says so."""
        rest, config = iter(numbers), self.task.config
        threads = auto_workers(config.data)
        embedder = ChunkEmbedder(
            self.source, self.encoder, patches=self.task.patches, batch_size=config.batch_size, threads=threads
        )
        with closing(embedder), ThreadPoolExecutor(AT_ONCE, thread_name_prefix="chunk") as pool:
            try:
                yield from in_order(pool, rest, lambda n: embedder.embed(n, plan.images(n)), ahead=AT_ONCE, stop=stop)
            finally:
                embedder.stop()


def in_order(
    pool: ThreadPoolExecutor, numbers: Iterator[int], make: Callable[[int], Chunk], *, ahead: int, stop: Stop
) -> Generator[Chunk]:
    """The chunks of these numbers in their order, at most `ahead` of them in the making; none after `stop` says so."""
    waiting = deque(pool.submit(make, number) for number in islice(numbers, ahead))
    while waiting:
        if (found := _wait(waiting[0], stop)) is None:
            return
        waiting.popleft()
        waiting.extend(pool.submit(make, number) for number in islice(numbers, 1))
        yield found


def _wait(future: Future[Chunk], stop: Stop) -> Chunk | None:
    """What a thread makes; None if `stop` says so before."""
    while not stop():
        if wait([future], timeout=POLL_SECONDS).done:
            return future.result()
    return None
