"""Clients of `mcbeit serve`: files in, vectors out, with bounded retries and bounded memory.

    with Client("http://127.0.0.1:8000") as client:
        vectors = client.embed(["a.jpg", "b.jpg"])       # float32 [2, dim]

`AsyncClient` does the same for asyncio. Long lists become several requests, by the limits that the service tells.
"""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from types import TracebackType
from typing import Any, TypeVar

import httpx
import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import EncoderSpec, ImageInput
from mcbeit.errors import ServiceError
from mcbeit.http_requests import (
    Batch,
    Options,
    batches,
    embed_request,
    pixels_request,
    read_npy,
    read_output,
    refusal,
    retry_delay,
)

REVISION = "x-model-revision"
TOO_LARGE = 413
SAFE_SHARE = 0.9  # of the largest body: a form is larger than its files

Found = TypeVar("Found")
Vectors = Float32[np.ndarray, "image dim"]
PatchFeatures = Float32[np.ndarray, "image row column dim"]


class _Settings:
    """What both clients are told, and what the service says of its model."""

    def __init__(
        self, address: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 60.0,
        retries: int = 4, concurrency: int = 4, max_items: int = 64,
    ) -> None:  # fmt: skip
        self.address, self.model_name, self.retries, self.concurrency = address, model, retries, concurrency
        self.max_items = max_items
        self.httpx: dict[str, Any] = {
            "base_url": address.rstrip("/"),
            "timeout": timeout,
            "headers": {} if api_key is None else {"authorization": f"Bearer {api_key}"},
        }
        self.told: dict[str, Any] | None = None

    def chosen(self, answer: httpx.Response) -> dict[str, Any]:
        """The model that is asked, as the service tells of it. Raises ServiceError if it has no such model."""
        try:
            found = {str(model["id"]): model for model in answer.json()["data"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"what answers at {self.address} is no service of mcbeit") from error
        name = self.model_name or next(iter(found), "")
        if name not in found:
            raise ServiceError(f"there is no model '{name}' at {self.address}; served: {', '.join(found)}", 404)
        self.told = found[name]
        return found[name]

    def limits(self, told: dict[str, Any]) -> tuple[int, int]:
        """Images and bytes of one request."""
        return min(self.max_items, int(told["max_items"])), int(int(told["max_body_bytes"]) * SAFE_SHARE)

    def unreachable(self, error: Exception) -> ServiceError:
        """No answer, however often it was asked."""
        return ServiceError(f"there is no answer from {self.address} ({type(error).__name__}); is the service running?")


class _Revisions:
    """All vectors of one call must be of one model."""

    def __init__(self) -> None:
        self.first: str | None = None

    def check(self, answer: httpx.Response) -> None:
        """Raise ServiceError if the model was replaced since the first answer."""
        found = answer.headers.get(REVISION)
        self.first = self.first or found
        if found != self.first:
            raise ServiceError("the model was replaced while its vectors were fetched; they do not fit, ask again")


class AsyncClient:
    """A service, asked from one event loop.

    `retries` is how often a request is sent again that found no service or a busy one; `concurrency` how many are under
    way at once. Raises ServiceError for every failure; it names the image at fault.
    """

    def __init__(self, address: str, **options: Any) -> None:
        self._settings = _Settings(address, **options)
        self._http = httpx.AsyncClient(**self._settings.httpx)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let its connections go."""
        await self._http.aclose()

    async def spec(self) -> EncoderSpec:
        """What the vectors are."""
        return EncoderSpec.model_validate((await self._model())["spec"])

    async def embed(
        self, images: Iterable[ImageInput], *, dimensions: int | None = None, normalize: bool | None = None
    ) -> Vectors:
        """A vector per image: files as bytes or paths, pictures of PIL, or uint8 [height, width, 3]."""
        options = Options(self._settings.model_name, dimensions=dimensions, normalize=normalize)
        found = [one async for one in self._all(images, options)]
        return np.concatenate(found) if found else np.zeros((0, dimensions or (await self.spec()).dim), np.float32)

    async def patch_features(self, images: Iterable[ImageInput]) -> PatchFeatures:
        """A vector per patch of each image, not scaled."""
        found = [one async for one in self._all(images, Options(self._settings.model_name, patches=True))]
        spec = await self.spec()
        return np.concatenate(found) if found else np.zeros((0, *spec.grid, spec.patch_dim), np.float32)

    async def of_pixels(self, pixels: np.ndarray, *, patches: bool = False) -> np.ndarray:
        """The numbers of images that are resized and cropped already, uint8 [n, size, size, 3]; not scaled."""
        told, revisions, found = await self._model(), _Revisions(), []
        items, size = self._settings.limits(told)
        step = max(1, min(items, size // max(1, pixels[:1].nbytes)))
        for start in range(0, len(pixels), step):
            request = pixels_request(pixels[start : start + step], told["id"], patches=patches)
            answer = await self._send(request, None)
            revisions.check(answer)
            found.append(read_output(answer.content, answer.headers))
        return np.concatenate(found)

    async def _model(self) -> dict[str, Any]:
        settings = self._settings
        return settings.told or settings.chosen(await self._send({"method": "GET", "url": "/v1/models"}, None))

    async def _all(self, images: Iterable[ImageInput], options: Options) -> AsyncIterator[np.ndarray]:
        """The answers, in order; so many requests are under way at once that memory stays bounded."""
        waiting: deque[asyncio.Task[np.ndarray]] = deque()
        revisions = _Revisions()
        try:
            for batch in batches(images, *self._settings.limits(await self._model())):
                waiting.append(asyncio.create_task(self._batch(batch, options, revisions)))
                if len(waiting) >= self._settings.concurrency:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _batch(self, batch: Batch, options: Options, revisions: _Revisions) -> np.ndarray:
        try:
            answer = await self._send(embed_request(batch, options), batch)
        except ServiceError as error:
            if error.status != TOO_LARGE or len(batch.files) == 1:
                raise
            return np.concatenate([await self._batch(half, options, revisions) for half in batch.halves()])
        revisions.check(answer)
        return read_npy(answer.content)

    async def _send(self, request: dict[str, Any], batch: Batch | None) -> httpx.Response:
        """Send it until there is an answer that counts."""
        for attempt in range(self._settings.retries + 1):
            is_last = attempt == self._settings.retries
            try:
                answer = await self._http.request(**request)
            except httpx.TransportError as error:
                if is_last:
                    raise self._settings.unreachable(error) from error
                await asyncio.sleep(retry_delay(None, {}, "", attempt) or 0.0)
                continue
            if answer.is_success:
                return answer
            delay = retry_delay(answer.status_code, answer.headers, answer.text, attempt)
            if delay is None or is_last:
                raise refusal(answer.status_code, answer.text, batch)
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")


class Client:
    """The same for programs without an event loop: it has one of its own, in a thread. Any thread may ask."""

    def __init__(self, address: str, **options: Any) -> None:
        self._client = AsyncClient(address, **options)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="client", daemon=True)
        thread.start()
        # also where nobody calls `close`: when the last reference goes, or the program ends
        self._end = weakref.finalize(self, _end, self._client, self._loop, thread)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let its connections go. It cannot be used afterwards."""
        self._end()

    @property
    def spec(self) -> EncoderSpec:
        """What the vectors are."""
        return self._wait(self._client.spec())

    def embed(
        self, images: Iterable[ImageInput], *, dimensions: int | None = None, normalize: bool | None = None
    ) -> Vectors:
        """See `AsyncClient.embed`."""
        return self._wait(self._client.embed(images, dimensions=dimensions, normalize=normalize))

    def patch_features(self, images: Iterable[ImageInput]) -> PatchFeatures:
        """See `AsyncClient.patch_features`."""
        return self._wait(self._client.patch_features(images))

    def of_pixels(self, pixels: np.ndarray, *, patches: bool = False) -> np.ndarray:
        """See `AsyncClient.of_pixels`."""
        return self._wait(self._client.of_pixels(pixels, patches=patches))

    def _wait(self, work: Coroutine[Any, Any, Found]) -> Found:
        asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return asked.result()
        except BaseException:  # as Ctrl-C
            asked.cancel()
            raise


def _end(client: AsyncClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if threading.current_thread() is thread:  # where a garbage collection may be; nothing can be waited for
        loop.call_soon(loop.stop)
        return
    if not thread.is_alive():  # in a process that was forked: it has no such thread to wait for
        return
    asyncio.run_coroutine_threadsafe(client.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
