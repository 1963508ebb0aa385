"""What every route has in common: keys, limits of time, refusals in the shape of its family, headers, numbers."""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from itertools import count
from operator import attrgetter
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.errors import RequestError
from mcbeit.serve.service import Service
from mcbeit.serve.tracing import maybe_span

LOGGER = logging.getLogger("mcbeit.serve")
ACCESS = logging.getLogger("mcbeit.serve.access")
PROCESS, COUNTER = secrets.token_hex(8), count()
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
GONE = 499  # nginx's number for a client that left; nobody reads it

Handle = Callable[[Call], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Family(NamedTuple):
    """How one family of clients reads errors."""

    body: Callable[[RequestError], Any]
    status: Callable[[RequestError], int] = attrgetter("status")


def joint_error(error: RequestError) -> dict[str, Any]:
    """OpenAI's `error` object, and `detail` as Jina, Voyage and FastAPI have it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    told = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    return {"error": told, "detail": error.message}


def text_error(error: RequestError) -> dict[str, Any]:
    """KServe, Weaviate: `error` is a string."""
    return {"error": error.message}


JOINT, TEXT = Family(joint_error), Family(text_error)


def endpoint(handle: Handle, family: Family = JOINT, *, public: bool = False, works: bool = True) -> Endpoint:
    """The route of a handler.

    `public`: without a key. `works`: it gives the models work, so it is refused when there is too much of it.
    """

    async def answer(request: Request) -> Response:
        service: Service = request.app.state.service
        call = Call(request, service)
        request_id, route = _request_id(request), _route(request)
        code = ""
        with maybe_span(service.tracing, request, route, request_id) as end:
            try:
                response = await _answer(call, handle, public=public, works=works)
            except RequestError as error:
                code = error.code
                response = refusal(error, family)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except Exception:
                LOGGER.exception("%s %s failed", request.method, route, extra={"request_id": request_id})
                code = "internal_error"
                response = refusal(RequestError(500, code, "the service failed; its log says why"), family)
            finally:
                call.release()
            end(response.status_code, call.timings)
        if not service.is_replica:
            response.headers["x-request-id"] = request_id
        response.headers.update(call.timings.headers())
        if call.model_used is not None:
            response.headers["x-model-revision"] = call.model_used.revision
        _tell(call, response.status_code, code, request_id, route)
        return response

    return answer


def refusal(error: RequestError, family: Family = JOINT) -> Response:
    """The answer to a request that is refused."""
    headers = {"x-should-retry": "true" if error.status in (408, 429, 503) else "false"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:.0f}"
        headers["retry-after-ms"] = f"{error.retry_after * 1e3:.0f}"
    return JSONResponse(family.body(error), family.status(error), headers)


async def _answer(call: Call, handle: Handle, *, public: bool, works: bool) -> Response:
    service = call.service
    if not public:
        check_key(call.request, service.keys)
    if works:
        if service.is_draining:
            raise RequestError(503, "draining", "the service is stopping; ask another one", retry_after=1.0)
        service.admission.check()
    seconds = service.config.limits.request_seconds
    try:
        async with asyncio.timeout(seconds):
            return await handle(call)
    except TimeoutError as error:
        raise RequestError(
            408, "timeout", f"the answer took more than {seconds:g} s; send fewer images per request"
        ) from error


def new_id(kind: str) -> str:
    """A name that no other request has. Not by the system's random numbers, for which every request would wait."""
    return f"{kind}-{PROCESS}{next(COUNTER):08x}"


def check_key(request: Request, keys: tuple[str, ...]) -> None:
    """Raise RequestError (401) if there are keys and the request has none of them; in the same time for any."""
    if not keys:
        return
    kind, _, told = request.headers.get("authorization", "").partition(" ")
    told = told.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
    digest = hashlib.sha256(told.encode()).digest()
    alike = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in keys]  # all are compared
    if not any(alike):
        raise RequestError(401, "invalid_api_key", "no valid API key: send the header `Authorization: Bearer KEY`")


def _request_id(request: Request) -> str:
    told = request.headers.get("x-request-id", "")
    return told if REQUEST_ID.fullmatch(told) else new_id("req")


def _route(request: Request) -> str:
    """The path as it is declared: names in it would be without number."""
    return str(getattr(request.scope.get("route"), "path", "unknown"))


def _tell(call: Call, status: int, code: str, request_id: str, route: str) -> None:
    call.service.metrics.answered(route, status, call.timings)
    if code:
        call.service.metrics.rejected.labels(code).inc()
    if call.service.config.access_log:
        told = {"request_id": request_id, "method": call.request.method, "route": route, "status": status,
                "code": code, "seconds": round(call.timings.total, 6), "images": call.timings.num_images,
                "cached": call.timings.num_cached}  # fmt: skip
        ACCESS.info("%s %s %d", call.request.method, route, status, extra={"request": told})
