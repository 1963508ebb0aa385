"""Spans, as a collector receives them."""

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from images import encode, photo
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from serving import IMAGE_TYPE, serve_config, serving

from mcbeit.errors import ConfigError
from mcbeit.serve.service import Service

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    spans: ClassVar[list[Any]] = []
    services: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in told.resource_spans:
            self.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *parts: Any) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Collector]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, daemon=True).start()
        yield Collector
        server.shutdown()


def test_spans__of_every_request(collector: type[Collector]) -> None:
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine"}
    with serving(tracing=True) as client:
        client.post("/v1/embed", content=encode(photo()), headers={**IMAGE_TYPE, **headers})
        client.post("/v1/embed", content=b"no image", headers=IMAGE_TYPE)
    good, bad = sorted(collector.spans, key=lambda span: int(span.start_time_unix_nano))
    told = {one.key: one.value for one in good.attributes}
    assert (good.name, good.trace_id.hex()) == ("POST /v1/embed", TRACE)
    assert told["mcbeit.request_id"].string_value == "mine"
    assert told["http.response.status_code"].int_value == 200
    assert told["mcbeit.infer_seconds"].double_value > 0
    assert {one.key: one.value.int_value for one in bad.attributes}["http.response.status_code"] == 415
    assert bad.trace_id.hex() != TRACE
    assert collector.services == {"mcbeit"}


def test_tracing__without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'mcbeit\[tracing\]'"):
        Service(serve_config(tracing=True))
