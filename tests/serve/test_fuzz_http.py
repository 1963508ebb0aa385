"""Bytes that are no HTTP, bodies without end, answers without measure."""

import base64
import contextlib
import gzip
import re
import socket
from collections.abc import Callable, Iterator

import httpx
import pytest
from images import encode, photo
from serving import serving

GOOD = encode(photo(seed=7))


def packed_chunks() -> Iterator[bytes]:
    """A gzip that ends, and a stream behind it."""
    yield gzip.compress(GOOD)
    for _ in range(10_000):
        yield b"x" * 65_536


def named_chunks() -> Iterator[bytes]:
    """The header of a gzip with a name that does not end: it inflates to nothing."""
    yield b"\x1f\x8b\x08\x08\0\0\0\0\0\xff"
    for _ in range(10_000):
        yield b"x" * 65_536


@pytest.mark.parametrize(("chunks", "told"), [(packed_chunks, "invalid_encoding"), (named_chunks, "body_too_large")])
def test_body__packed_and_without_end(client: httpx.Client, chunks: Callable[[], Iterator[bytes]], told: str) -> None:
    answer = client.post("/v1/embed", content=chunks(), headers={"content-encoding": "gzip"})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] == told


EMBED, MODELS, END = b"POST /v1/embed HTTP/1.1\r\n", b"GET /v1/models HTTP/1.1\r\n", b"\r\n\r\n"
RAW = (
    b"\0" * 100,
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM" + END,
    b"GET /\xff HTTP/1.1" + END,
    b"GET / HTTP/9.9" + END,
    b"GET http://[::1/v1/models HTTP/1.1\r\nHost: x" + END,
    b"CONNECT a:1 HTTP/1.1" + END,
    b"OPTIONS * HTTP/1.1\r\nHost: x" + END,
    b"GET /%00%ff%fe/..//v1 HTTP/1.1\r\nHost: x" + END,
    b"GET /v1/models/" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x" + END,
    MODELS + b"no colon" + END,
    MODELS + b"X: \xff\xfe" + END,
    MODELS + b"Upgrade: websocket\r\nConnection: Upgrade" + END,
    MODELS + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA" + END,
    EMBED + b"Content-Length: -1" + END,
    EMBED + b"Content-Length: 1\r\nContent-Length: 2" + END + b"x",
    EMBED + b"Content-Length: " + b"9" * 5000 + END,
    EMBED + b"Content-Length: 3\r\nTransfer-Encoding: chunked" + END + b"0" + END,
    EMBED + b"Transfer-Encoding: chunked" + END + b"ZZ\r\n",
    EMBED + b"Transfer-Encoding: chunked" + END + b"ffffffffffffffffff\r\nx",
    EMBED + b"Expect: x\r\nContent-Length: 1" + END + b"x",
)


@pytest.mark.parametrize("data", RAW, ids=lambda data: repr(data[:40]))
def test_http__that_is_none(client: httpx.Client, data: bytes) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as raw:
        raw.sendall(data)
        raw.shutdown(socket.SHUT_WR)
        answer = raw.makefile("rb").read()
    status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert status in (0, 200, 400, 404, 405, 413, 415), answer[:300]
    assert not re.search(r"0x[0-9a-f]{6,}|\.py\b|Traceback", answer.decode("latin-1"))


def test_answers__are_not_far_larger_than_requests() -> None:
    with serving(limits={"body_bytes": 10_000, "image_bytes": 10_000}) as client:
        form = {"input": [base64.b64encode(encode(photo(1, 1))).decode()] * 3}
        assert client.post("/v1/embeddings", json=form).status_code == 200
        answer = client.post("/v1/embeddings", json={**form, "pooling": "patch"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "answer_too_large")
        one = {"input": form["input"][:1], "pooling": "patch"}
        assert client.post("/v1/embeddings", json=one).status_code == 200


def long_header() -> Iterator[bytes]:
    """It does not end."""
    yield MODELS
    for _ in range(2000):
        yield b"X-Name: " + b"a" * 8000 + b"\r\n"


def long_name() -> Iterator[bytes]:
    """One line that does not end."""
    yield MODELS + b"X-Name: "
    for _ in range(2000):
        yield b"a" * 8000


def long_trailer() -> Iterator[bytes]:
    """A body that ends, and headers behind it that do not."""
    yield EMBED + b"Transfer-Encoding: chunked" + END + b"0\r\n"
    for _ in range(2000):
        yield b"X-Name: " + b"a" * 8000 + b"\r\n"


@pytest.mark.parametrize("pieces", [long_header, long_name, long_trailer])
def test_headers__without_end_are_cut_off(client: httpx.Client, pieces: Callable[[], Iterator[bytes]]) -> None:
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=30) as raw, pytest.raises(ConnectionError):
        raw.sendall(b"".join(pieces()))
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("lines", [1, 100])
def test_headers__that_end_beyond_the_limit_get_no_answer(client: httpx.Client, lines: int) -> None:
    header = b"".join(b"X-Name: " + b"a" * (200_000 // lines) + b"\r\n" for _ in range(lines))
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=30) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(MODELS + header + b"\r\n")
        assert raw.makefile("rb").read() == b""
    assert client.get("/v1/models").status_code == 200


def test_headers__that_are_long_but_end(client: httpx.Client) -> None:
    for _ in range(3):  # of one connection
        assert client.get("/v1/models", headers={"x-name": "a" * 30_000}).status_code == 200
