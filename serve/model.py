"""One model that is served: from the image of a request to its numbers.

bytes -> hash and cache -> gate -> pixels, all in a thread of the pool -> micro-batcher -> one thread that computes.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import FAKE, EncoderConfig, EncoderSpec, PixelEncoder, derived_fingerprint, load_encoder
from mcbeit.errors import ConfigError, EncoderError
from mcbeit.image_files import COLOURS
from mcbeit.model_folder import is_model_folder
from mcbeit.serve.batcher import MicroBatcher
from mcbeit.serve.cache import Key, VectorCache
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.decoding import Decoding
from mcbeit.serve.gate import ImageGate
from mcbeit.serve.metrics import Metrics
from mcbeit.serve.payload import Decoded, Encoded, Raw
from mcbeit.serve.timings import Timings

Numbers = Float32[np.ndarray, "*shape dim"]
CANARY_SEED = 0


class Shared(NamedTuple):
    """What all models of a service use together."""

    decoding: Decoding
    cache: VectorCache
    metrics: Metrics


class Prepared(NamedTuple):
    """An image that was looked at: its numbers, if they are known, or its pixels, or the file if it is a large one."""

    key: Key
    numbers: np.ndarray | None
    pixels: np.ndarray | None
    started: float
    seconds: float
    large: Callable[[], np.ndarray] | None = None  # what decodes it


class ServedModel:
    """An encoder with its gate, its queue and its thread. Loading it takes seconds, and warms it up."""

    def __init__(self, name: str, source: str, encoder: PixelEncoder, config: ServeConfig, shared: Shared) -> None:
        self.name, self.source, self.encoder, self.shared = name, source, encoder, shared
        self.loaded_at = int(time.time())
        self.spec = _with_draft(encoder.spec) if config.jpeg_draft else encoder.spec
        self.max_image_bytes = config.limits.image_bytes
        self.gate = ImageGate(config.limits, self.spec.preprocess, shared.decoding.budget)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{name}")
        self.batcher = MicroBatcher(
            self._compute, self._thread, config.batch, pad=_pads(encoder, config), observe=self._observe
        )
        self.num_images = 0  # that were asked for
        self.num_users = 0  # requests that hold it
        self._max_batch = config.batch.max_size
        self._warm_up(config.batch.max_seconds)

    @classmethod
    def open(cls, name: str, source: str, config: ServeConfig, shared: Shared) -> "ServedModel":
        """Load an exported folder, or the fake encoder. Raises EncoderError or ConfigError."""
        return cls(name, source, open_encoder(source, config), config, shared)

    @property
    def revision(self) -> str:
        """Which numbers it gives: vectors of different revisions may not be compared."""
        return self.spec.fingerprint

    @property
    def num_patches(self) -> int:
        """Of one image."""
        rows, columns = self.spec.grid
        return rows * columns

    @property
    def num_tokens(self) -> int:
        """Of one image: its patches and the cls token."""
        return self.num_patches + 1

    async def numbers(self, image: Raw | Encoded | Decoded, *, patches: bool, timings: Timings) -> Numbers:
        """What the model says of one image, neither cut nor scaled. Raises RequestError."""
        timings.num_images += 1
        self.num_images += 1
        if isinstance(image, Decoded):
            self.shared.metrics.images.labels(self.name, "no").inc()
            return await self._of_pixels(image.pixels, patches=patches, timings=timings)
        prepared = await self._read(image, patches, timings)
        is_cached = prepared.numbers is not None
        self.shared.metrics.images.labels(self.name, "yes" if is_cached else "no").inc()
        if prepared.numbers is not None:
            timings.num_cached += 1
            return prepared.numbers
        assert prepared.pixels is not None
        numbers = await self._of_pixels(prepared.pixels, patches=patches, timings=timings)
        self.shared.cache.put(prepared.key, numbers)
        return numbers

    async def _read(self, image: Raw | Encoded, patches: bool, timings: Timings) -> Prepared:
        """Numbers that are known, or pixels."""
        asked, decoding = perf_counter(), self.shared.decoding
        prepared = await decoding.run(partial(self._prepare, image, patches))
        if prepared.large is not None:
            asked = perf_counter()
            started, pixels = await decoding.run_large(partial(_timed, prepared.large))
            prepared = prepared._replace(pixels=pixels, started=started, seconds=perf_counter() - started)
        elif prepared.pixels is not None:
            decoding.learn(prepared.seconds)
        timings.note("wait", prepared.started - asked)
        timings.note("decode", prepared.seconds)
        return prepared

    async def _of_pixels(self, pixels: np.ndarray, *, patches: bool, timings: Timings) -> Numbers:
        item = await self.batcher.submit(pixels, patches=patches)
        timings.note("queue", item.queue_seconds)
        timings.note("infer", item.infer_seconds)
        return item.vector.result()

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Of one image: rows, columns, colours."""
        return self.spec.image_size, self.spec.image_size, self.spec.preprocess.channels

    async def canary(self) -> None:
        """Try it on a picture of its own, through its queue. Raises RequestError as any request."""
        await self.batcher.submit(self._canary_pixels())

    async def retire(self) -> None:
        """End when the last request that holds it is done."""
        while self.num_users:
            await asyncio.sleep(0.01)
        await self.close()

    async def close(self) -> None:
        """End now."""
        await self.batcher.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, image: Raw | Encoded, patches: bool) -> Prepared:
        started = perf_counter()
        data = image.read(self.max_image_bytes)
        key = Key(hashlib.sha256(data).hexdigest(), self.revision, patches)
        numbers = self.shared.cache.get(key)
        if numbers is not None:
            return Prepared(key, numbers, None, started, perf_counter() - started)
        size = self.gate.check(data)
        if self.shared.decoding.is_large(size):
            return Prepared(key, None, None, started, perf_counter() - started, partial(self.gate.decode, data, size))
        return Prepared(key, None, self.gate.decode(data, size), started, perf_counter() - started)

    def _compute(self, pixels: np.ndarray, patches: bool) -> np.ndarray:
        return self.encoder.compute(pixels, patches=patches)

    def _observe(self, size: int, seconds: float) -> None:
        self.shared.metrics.batch(self.name, size, seconds)

    def _canary_pixels(self) -> np.ndarray:
        return np.random.default_rng(CANARY_SEED).integers(0, 256, self.pixel_shape, np.uint8)

    def _warm_up(self, max_seconds: float) -> None:
        """Run every size of batch that requests may meet, so that none of them pays for the first time.

        Raises EncoderError if the model cannot be computed.
        """
        canary, size, seconds = self._canary_pixels(), 1, 0.0
        while size <= self._max_batch and seconds * 2 <= max_seconds:
            started = perf_counter()
            try:
                numbers = self._thread.submit(self._compute, np.stack([canary] * size), False).result()
            except Exception as error:  # each provider has errors of its own
                raise EncoderError(f"{self.name} cannot be computed: {' '.join(str(error).split())}") from error
            if not np.isfinite(numbers).all():
                raise EncoderError(f"{self.name} gives numbers that are not finite; export it again in fp32")
            seconds = perf_counter() - started
            self.batcher.learn(size, seconds)
            size *= 2


def _timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    return perf_counter(), work()


def open_encoder(source: str, config: ServeConfig) -> PixelEncoder:
    """What computes a model of the service; it needs no torch. Raises EncoderError or ConfigError."""
    options = EncoderConfig() if config.image_size is None else EncoderConfig(image_size=config.image_size)
    if source == FAKE:
        return load_encoder(source, options)
    if not is_model_folder(Path(source).expanduser()):
        raise EncoderError(
            f"'{source}' is no folder that `mcbeit export` wrote, and only these are served: mcbeit export {source} "
            "-o DIR, then mcbeit serve DIR"
        )
    # where a link leads is looked at once: manifest and graph are of the same folder, whatever it points to later
    folder = str(Path(source).expanduser().resolve())
    encoder = load_encoder(folder, options, threads=config.threads, provider=config.provider)
    if (channels := encoder.spec.preprocess.channels) != COLOURS:
        raise ConfigError(f"'{source}' takes images of {channels} channels; the service takes ordinary images only")
    return encoder


def split_name(model: str) -> tuple[str | None, str]:
    """`NAME=FOLDER` as its two parts; a folder that is called so is a folder."""
    name, equals, source = model.partition("=")
    return (name, source) if equals and not Path(model).expanduser().exists() else (None, model)


def _with_draft(spec: EncoderSpec) -> EncoderSpec:
    """Vectors of images that were decoded at a fraction are others."""
    preprocess = spec.preprocess.model_copy(update={"jpeg_draft": True})
    fingerprint = derived_fingerprint(spec.fingerprint, "jpeg_draft")
    return spec.model_copy(update={"preprocess": preprocess, "fingerprint": fingerprint})


def _pads(encoder: PixelEncoder, config: ServeConfig) -> bool:
    provider = getattr(encoder, "provider", "CPUExecutionProvider")
    return provider != "CPUExecutionProvider" if config.batch.pad is None else config.batch.pad
