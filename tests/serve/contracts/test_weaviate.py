"""Weaviate's modules, byte by byte as its Go clients write them."""

import base64
import json
import socket

import httpx
import numpy as np
import pytest
from images import encode
from PIL import Image

from mcbeit.fake_encoder import FakeEncoder


def exchange(client: httpx.Client, *requests: bytes) -> list[tuple[int, bytes]]:
    """Send requests one after the other over one connection; status and body of each answer."""
    found = []
    address = (client.base_url.host, client.base_url.port or 80)
    with socket.create_connection(address, timeout=30) as connection, connection.makefile("rb") as stream:
        for request in requests:
            connection.sendall(request)
            status = int(stream.readline().split()[1])
            headers = dict(line.split(b": ", 1) for line in iter(lambda: stream.readline().strip(), b""))
            found.append((status, stream.read(int(headers.get(b"content-length", b"0")))))
    return found


def vectors_request(body: bytes, path: str = "/vectors") -> bytes:
    """What Go's http.NewRequest writes: no Content-Type."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: i2v:8080\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {len(body)}\r\n"
    )
    return f"{head}Accept-Encoding: gzip\r\n\r\n".encode() + body


def test_vectors__without_content_type_and_sent_twice(
    client: httpx.Client, texts: list[str], vectors: np.ndarray
) -> None:
    body = json.dumps({"id": "5a1c_0", "image": texts[0]}).encode()
    answers = exchange(client, vectors_request(body), vectors_request(body), vectors_request(body, "/vectors/"))
    for status, answer in answers:
        told = json.loads(answer)
        assert (status, told["id"], told["dim"]) == (200, "5a1c_0", 64)
        np.testing.assert_allclose(told["vector"], vectors[0], atol=1e-6)


def test_vectors__the_picture_of_its_own_test(client: httpx.Client, texts: list[str]) -> None:
    pixel = encode(Image.new("RGB", (1, 1), (255, 0, 0)))
    answer = client.post("/vectors", json={"id": "", "image": base64.b64encode(pixel).decode()})
    np.testing.assert_allclose(answer.json()["vector"], FakeEncoder().embed([pixel])[0], atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [b'{"id": "a", "image": "aGVsbG8gd29ybGQgdGhpcyBpcyBubyBpbWFnZQ=="}', b"{", b"", b'{"id": "a"}', b'{"image": 5}'],
)
def test_vectors__an_error_is_a_string(client: httpx.Client, body: bytes) -> None:
    ((status, answer),) = exchange(client, vectors_request(body))
    assert 400 <= status < 500
    assert isinstance(json.loads(answer)["error"], str)


def test_vectorize(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    told = client.post("/vectorize", json={"texts": [], "images": texts}).json()
    assert told["textVectors"] == []
    np.testing.assert_allclose(told["imageVectors"], vectors, atol=1e-6)
    refused = client.post("/vectorize/", json={"texts": ["a cat"], "images": []})
    assert (refused.status_code, "image-only model" in refused.json()["error"]) == (400, True)


def test_ready_and_meta(client: httpx.Client) -> None:
    ready = b"GET /.well-known/ready HTTP/1.1\r\nHost: i2v:8080\r\nUser-Agent: Go-http-client/1.1\r\n\r\n"
    assert exchange(client, ready, ready.replace(b"ready", b"live")) == [(204, b""), (204, b"")]
    assert client.get("/meta").json()["dim"] == 64
