"""What is behind the routes: models, one pool of threads, one cache, and the truth about its health."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mcbeit.encoder import FAKE
from mcbeit.errors import ConfigError, McbeitError
from mcbeit.machine import num_cores
from mcbeit.model_folder import is_model_folder, read_model_folder
from mcbeit.serve.admission import Admission
from mcbeit.serve.cache import VectorCache
from mcbeit.serve.config import FetchConfig, ServeConfig, api_keys
from mcbeit.serve.decoding import Decoding
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.metrics import Metrics
from mcbeit.serve.model import Numbers, ServedModel, Shared, split_name
from mcbeit.serve.payload import Decoded, Encoded, Link, Payload, Raw
from mcbeit.serve.timings import Timings
from mcbeit.serve.tracing import Tracing

if TYPE_CHECKING:
    from mcbeit.serve.fetch import Fetcher
    from mcbeit.serve.indexes import Ask, Indexes, LocalIndexes

LOGGER = logging.getLogger("mcbeit.serve")
STALE_CANARIES = 3  # so many intervals without numbers from a model, and it is not ready
AHEAD = 2  # batches of one request that are read at once; others get in between


class Service:
    """The models of a service. Opening it loads and warms them; requests need `running()` around them."""

    def __init__(self, config: ServeConfig, *, ask_indexes: "Ask | None" = None) -> None:
        self.config = config
        self._own_indexes: LocalIndexes | None = None
        self.keys = api_keys(config)
        self.metrics = Metrics()
        self.cache = VectorCache(config.cache_bytes)
        self.decoding = Decoding(config.decode_threads or max(1, int(num_cores())), config.limits)
        self._shared = Shared(self.decoding, self.cache, self.metrics)
        self._sources = _named(config.models)
        self.models = {name: self._open(name) for name in self._sources}
        self.admission = Admission(config.limits, self._seconds_per_item)
        self.is_draining = False
        self.is_replica = False  # one of several under Ray Serve, which names requests and replaces models
        self.indexes = self._open_indexes(ask_indexes)
        self.tracing = Tracing() if config.tracing else None
        self._fetcher: Fetcher | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch over the models; at the end, let go of everything."""
        canaries = asyncio.create_task(self._watch(), name="canaries")
        self._fetcher = None if self.config.urls is None else _fetcher(self.config.urls)
        try:
            yield
        finally:
            canaries.cancel()
            await asyncio.gather(canaries, *self._retiring, return_exceptions=True)
            if self._fetcher is not None:
                await self._fetcher.close()
            for model in self.models.values():
                await model.close()
            if self._own_indexes is not None:
                self._own_indexes.close()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)
            self.decoding.close()

    def model(self, name: str | None) -> ServedModel:
        """The model of a name; the first without one. Raises RequestError (404)."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise RequestError(
                404, "model_not_found", f"there is no model '{name[:200]}' here; served: {known}", param="model"
            )
        return self.models[name]

    async def embed(
        self, model: ServedModel, images: Sequence[Payload], timings: Timings, *, patches: bool = False,
        keep_errors: bool = False, places: Sequence[str] | None = None,
    ) -> list[Numbers | RequestError]:  # fmt: skip
        """What the model says of each image, neither cut nor scaled, in order.

        The first refusal ends it and is raised, unless they are to be kept in place of the numbers. `places` are what
        refusals call the images; default: input[0] and so on.
        """
        turns = asyncio.Semaphore(AHEAD * self.config.batch.max_size)

        async def one(index: int, image: Payload) -> Numbers | RequestError:
            async with turns:
                try:
                    return await model.numbers(await self._fetched(image, timings), patches=patches, timings=timings)
                except RequestError as error:
                    told = error.at(f"input[{index}]" if places is None else places[index])
                    if keep_errors:
                        return told
                    raise told from error

        with self.admission.images(len(images)):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(index, image)) for index, image in enumerate(images)]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def reload(self, name: str, *, by_operator: bool = False) -> ServedModel:
        """Load a model from its folder anew and let it take over; requests that have begun end with the old one.

        Raises RequestError: 404 for a name that is not served, 409 if what is in the folder cannot be served, or if
        a client asks for it where other replicas would keep the old one.
        """
        before = self.model(name)
        if self.is_replica and not by_operator:
            raise RequestError(
                409, "reload_elsewhere", "this is one of several replicas; send SIGHUP to `mcbeit serve`, or deploy "
                "another `generation` as user_config",
            )  # fmt: skip
        async with self._reloading:
            try:
                model = await asyncio.to_thread(self._open, name)
            except McbeitError as error:
                LOGGER.exception("%s cannot be loaded again", name)
                raise RequestError(
                    409, "reload_failed", f"what is in the folder of '{name}' cannot be served; the old model goes on"
                ) from error
            self.models[name] = model
        LOGGER.info("%s: revision %s follows %s", name, model.revision[:12], before.revision[:12])
        retiring = asyncio.create_task(before.retire())
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return model

    async def reload_all(self) -> None:
        """Load every model anew; one that cannot be loaded goes on as it was, and the log says why."""
        for name in list(self.models):
            with contextlib.suppress(RequestError):
                await self.reload(name, by_operator=True)

    def unready_because(self) -> str | None:
        """Why no requests should be sent here now; None: they may come."""
        if self.is_draining:
            return "draining"
        age = max(self.age(model) for model in self.models.values())
        if age > STALE_CANARIES * self.config.canary_seconds:
            return f"no model has given numbers for {age:.0f} s"
        return None

    @staticmethod
    def age(model: ServedModel) -> float:
        """Seconds since the model last gave numbers."""
        last = model.batcher.last_success
        return float("inf") if last is None else time.monotonic() - last

    def measure(self) -> bytes:
        """What Prometheus is told."""
        metrics = self.metrics
        metrics.items.set(self.admission.items)
        metrics.bytes.set(self.admission.bytes)
        metrics.cached_bytes.set(self.cache.num_bytes)
        metrics.ready.set(self.unready_because() is None)
        for name, model in self.models.items():
            metrics.last_inference.labels(name).set(self.age(model))
        return metrics.text()

    def _open_indexes(self, ask: "Ask | None") -> "Indexes | None":
        """Those in another process if it says how to ask them, else those in the folder of the config."""
        if self.config.indexes is None:
            return None
        from mcbeit.serve.indexes import Indexes, LocalIndexes

        if ask is None:
            self._own_indexes = LocalIndexes(Path(self.config.indexes))
            ask = self._own_indexes.ask
        return Indexes(ask)

    def _open(self, name: str) -> ServedModel:
        return ServedModel.open(name, self._sources[name], self.config, self._shared)

    def _seconds_per_item(self) -> float:
        """Of the slowest model, or of reading images if that is slower."""
        slowest = max(model.batcher.seconds_per_item for model in self.models.values())
        return max(slowest, self.decoding.seconds_per_item)

    async def _fetched(self, image: Payload, timings: Timings) -> Raw | Encoded | Decoded:
        if not isinstance(image, Link):
            return image
        if self._fetcher is None:
            raise invalid(
                "images by URL are switched off here; send the image itself, as a data URI or base64",
                code="urls_disabled",
            )
        with timings.stage("fetch"):
            return Raw(await self._fetcher.fetch(image.url))

    async def _watch(self) -> None:
        """Try models that nobody has asked for a while, so that readiness is never a guess."""
        seconds = self.config.canary_seconds
        while True:
            await asyncio.sleep(seconds / 2)
            for model in list(self.models.values()):
                if self.age(model) >= seconds:
                    await _try(model, seconds)


def _fetcher(config: FetchConfig) -> "Fetcher":
    from mcbeit.serve.fetch import Fetcher

    return Fetcher(config)


async def _try(model: ServedModel, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await model.canary()
    except (RequestError, TimeoutError):
        LOGGER.exception("%s does not answer its canary", model.name)


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name -> source. Raises ConfigError or EncoderError."""
    found: dict[str, str] = {}
    for told in models:
        name, source = split_name(told)
        if name is None:
            name = FAKE if source == FAKE else _own_name(source)
        if name in found:
            raise ConfigError(f"two models are called '{name}'; give one another name: NAME={source}")
        found[name] = source
    return found


def _own_name(source: str) -> str:
    path = Path(source).expanduser()
    return read_model_folder(path, verify=False).name if is_model_folder(path) else source
