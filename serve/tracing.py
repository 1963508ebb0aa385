"""Spans for OpenTelemetry, if it is asked for and installed; where they go is said by the OTEL_* variables."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from starlette.requests import Request

from mcbeit.errors import ConfigError


@contextmanager
def span(is_on: bool, request: Request, request_id: str) -> Iterator[None]:
    """A span around the answer to a request, a child of the one that its traceparent header names."""
    if not is_on:
        yield
        return
    from opentelemetry.propagate import extract

    attributes = {"http.request.method": request.method, "url.path": request.url.path, "request.id": request_id}
    with tracer().start_as_current_span(
        f"{request.method} {request.url.path}", context=extract(dict(request.headers)), attributes=attributes
    ):
        yield


@cache
def tracer() -> Any:
    """The tracer of the service. Raises ConfigError without OpenTelemetry."""
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise ConfigError("tracing=true needs OpenTelemetry: pip install opentelemetry-sdk") from error
    return trace.get_tracer("mcbeit.serve")
