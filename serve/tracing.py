"""Spans for OpenTelemetry, if they are asked for. Where they go is said by the OTEL_* variables."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request

from mcbeit.errors import ConfigError
from mcbeit.serve.timings import Timings

SERVICE = "mcbeit"  # unless OTEL_SERVICE_NAME says another
End = Callable[[int, Timings], None]


class Tracing:
    """A span per request, sent by OTLP over HTTP. Raises ConfigError without the packages."""

    def __init__(self) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError("tracing=true needs OpenTelemetry: pip install 'mcbeit[tracing]'") from error
        self._trace, self._propagate = trace, propagate
        self._provider = TracerProvider(resource=Resource.create(_name()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("mcbeit.serve")

    @contextmanager
    def span(self, request: Request, route: str, request_id: str) -> Iterator[End]:
        """A span around the answer to a request, a child of the one that its traceparent header names.

        What it gives is to be told how it ended.
        """
        attributes = {"http.request.method": request.method, "http.route": route, "mcbeit.request_id": request_id}
        with self._tracer.start_as_current_span(
            f"{request.method} {route}", context=self._propagate.extract(dict(request.headers)),
            kind=self._trace.SpanKind.SERVER, attributes=attributes,
        ) as found:  # fmt: skip

            def end(status: int, timings: Timings) -> None:
                found.set_attribute("http.response.status_code", status)
                found.set_attribute("mcbeit.images", timings.num_images)
                for stage, seconds in timings.seconds.items():
                    found.set_attribute(f"mcbeit.{stage}_seconds", seconds)
                if status >= 500:
                    found.set_status(self._trace.StatusCode.ERROR)

            yield end

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


@contextmanager
def maybe_span(tracing: Tracing | None, request: Request, route: str, request_id: str) -> Iterator[End]:
    """A span, or nothing."""
    if tracing is None:
        yield lambda status, timings: None
        return
    with tracing.span(request, route, request_id) as end:
        yield end


def _name() -> dict[str, Any]:
    return {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": SERVICE}
