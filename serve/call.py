"""One request: its body within limits, the model that it holds, and the time it took."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from mcbeit.serve.errors import RequestError, invalid, too_large
from mcbeit.serve.model import Numbers, ServedModel
from mcbeit.serve.payload import Payload
from mcbeit.serve.service import Service
from mcbeit.serve.timings import Timings
from mcbeit.serve.vectors import Want, finish

LARGE_BODY = 256 * 1024  # bytes from which on JSON is read in a thread
INFLATABLE = {"gzip": 31, "deflate": 47}  # window bits of zlib; 47 takes headers of either kind
Form = TypeVar("Form", bound=BaseModel)
Found = TypeVar("Found")


class Call:
    """What a route needs to answer one request."""

    def __init__(self, request: Request, service: Service) -> None:
        self.request, self.service = request, service
        self.timings = Timings()
        self.model_used: ServedModel | None = None
        self._bytes = 0

    def release(self) -> None:
        """The request is answered."""
        self.service.admission.give_bytes(self._bytes)
        self._bytes = 0
        if self.model_used is not None:
            self.model_used.num_users -= 1

    def model(self, name: str | None = None) -> ServedModel:
        """The model of a name, held until the request is answered: all of its vectors are of one revision."""
        if self.model_used is None:
            self.model_used = self.service.model(name)
            self.model_used.num_users += 1
        return self.model_used

    async def body(self) -> bytes:
        """The whole body, inflated. Raises RequestError: 413 beyond the limit, 408 if it takes too long to arrive."""
        limits = self.service.config.limits
        self._check_length(limits.body_bytes)
        parts: list[bytes] = []
        with self.timings.stage("read"):
            try:
                async with asyncio.timeout(limits.body_seconds):
                    async for part in self._inflated():
                        parts.append(part)
                        self.service.admission.take_bytes(len(part))
                        self._bytes += len(part)
                        if self._bytes > limits.body_bytes:
                            raise _body_too_large(limits.body_bytes)
            except TimeoutError as error:
                raise RequestError(
                    408, "body_timeout", f"the body did not arrive within {limits.body_seconds:g} s"
                ) from error
            return b"".join(parts)

    async def form(self, kind: type[Form]) -> Form:
        """The body as JSON of a kind. Raises RequestError: 400 for what is no JSON, 422 for JSON of another kind."""
        body = await self.body()
        with self.timings.stage("parse"):
            if len(body) > LARGE_BODY:
                return await asyncio.to_thread(parse_form, kind, body)
            return parse_form(kind, body)

    async def vectors(
        self, images: Iterable[Payload], want: Want, *, keep_errors: bool = False, places: Sequence[str] | None = None
    ) -> list[Numbers | RequestError]:
        """The vectors of images as the request wants them, of the model that it holds. See `Service.embed`."""
        model = self.model()
        images = list(islice(images, self.service.config.limits.items + 1))  # no more are looked at
        if not images:
            raise invalid("there are no images in the request", code="empty_input", param="input")
        if want.patches:
            self._check_answer(len(images) * model.num_patches * model.spec.patch_dim * 4)
        work = self.service.embed(model, images, self.timings, patches=want.patches, keep_errors=keep_errors,
                                  places=places)  # fmt: skip
        found = await unless_gone(self.request, work)
        return [one if isinstance(one, RequestError) else finish(one, want, model.spec) for one in found]

    async def matrix(self, images: Iterable[Payload], want: Want, *, places: Sequence[str] | None = None) -> Numbers:
        """The same as one array; the first refusal is raised."""
        found = await self.vectors(images, want, places=places)
        return np.stack([one for one in found if not isinstance(one, RequestError)])

    def _check_length(self, limit: int) -> None:
        """Refuse by the header, before a byte of the body is read."""
        told = self.request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > limit:
            raise _body_too_large(limit)

    def _check_answer(self, num_bytes: int) -> None:
        """Refuse what would be a far larger answer than a request may be: a few bytes of image give many patches."""
        if num_bytes > (most := self.service.config.limits.body_bytes):
            raise too_large(
                f"the vectors of all patches would have {num_bytes} bytes, more than the {most} allowed; send fewer "
                "images per request", code="answer_too_large",
            )  # fmt: skip

    async def _inflated(self) -> AsyncIterator[bytes]:
        encoding = self.request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            async for part in self.request.stream():
                yield part
            return
        if encoding not in INFLATABLE:
            raise RequestError(
                415, "unsupported_encoding", f"the body is encoded as {encoding[:40]!r}; allowed: gzip, deflate, none"
            )
        inflater, packed, limit = zlib.decompressobj(INFLATABLE[encoding]), 0, self.service.config.limits.body_bytes
        try:
            async for part in self.request.stream():
                packed += len(part)
                if packed > limit:  # bytes that inflate to nothing
                    raise _body_too_large(limit)
                while part:
                    yield inflater.decompress(part, LARGE_BODY)
                    part = inflater.unconsumed_tail
                if inflater.unused_data:  # which zlib would keep, and copy for every further part
                    raise invalid(f"there are bytes behind the end of the {encoding} body", code="invalid_encoding")
            yield inflater.flush()
        except zlib.error as error:
            raise invalid(f"the body is not valid {encoding}", code="invalid_encoding") from error
        if not inflater.eof:
            raise invalid(f"the {encoding} body is truncated", code="invalid_encoding")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Found]) -> Found:
    """What `work` gives; if the client leaves first, it is cancelled and ClientDisconnect raised. After the body."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parse_form(kind: type[Form], body: bytes) -> Form:
    """JSON of a kind. Raises RequestError: 400 for what is no JSON, 422 for JSON of another kind."""
    if not body.strip():
        raise invalid("the body is empty; it must be JSON", code="empty_body")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise invalid("the body is not valid JSON", code="invalid_json") from error
        where = ".".join(str(part) for part in first["loc"] if not _is_kind(part)) or "the body"
        told = first["msg"].removeprefix("Value error, ")
        raise RequestError(422, "invalid_request", f"{where}: {told}", param=where) from error


def _is_kind(part: Any) -> bool:
    """Names that pydantic gives to the members of a union, such as str or list[str]."""
    return isinstance(part, str) and (not part.isidentifier() or part in {"str", "int", "float", "list", "dict"})


def _body_too_large(limit: int) -> RequestError:
    return too_large(f"the body has more than the {limit} bytes allowed; send fewer images per request",
                     code="body_too_large")  # fmt: skip
