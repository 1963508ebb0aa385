"""Requests of every kind that a service meets, drawn by chance, each with the statuses that are due."""

import base64
import contextlib
import gzip
import json
import random
import socket
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from images import encode, photo
from mutations import mutation

SIZES = ((48, 64), (240, 320), (600, 800), (1, 1), (30, 400))  # height, width
KINDS_OF_FILE = ("jpg", "png", "webp", "gif", "bmp")
JSON = {"content-type": "application/json"}
GOOD, BAD = (200,), (400, 413, 415, 422)


class Request(NamedTuple):
    """One request, and what may be answered; `leaves`: the client hangs up before it has the answer."""

    name: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = {}
    due: tuple[int, ...] = GOOD
    method: str = "POST"
    leaves: bool = False


@cache
def draw_pictures() -> list[bytes]:
    """The files that pictures are made of; it takes seconds."""
    return [_drawn(index) for index in range(60)]


def _drawn(index: int) -> bytes:
    height, width = SIZES[index % len(SIZES)]
    return encode(photo(height, width, seed=index), KINDS_OF_FILE[index % 7 % len(KINDS_OF_FILE)])


def picture(chance: random.Random) -> bytes:
    """A good file; bytes behind its end make one in two a new one."""
    file = chance.choice(draw_pictures())
    return file + chance.randbytes(8) if chance.random() < 0.5 else file


def text(chance: random.Random) -> str:
    """The same as base64 or as a data URI."""
    found = base64.b64encode(picture(chance)).decode()
    return f"data:image/png;base64,{found}" if chance.random() < 0.5 else found


def texts(chance: random.Random) -> list[str]:
    """One to eight of them."""
    return [text(chance) for _ in range(chance.choice((1, 1, 1, 2, 8)))]


def as_json(name: str, path: str, body: Any, due: tuple[int, ...] = GOOD) -> Request:
    """A request whose body is JSON."""
    return Request(name, path, json.dumps(body).encode(), JSON, due)


def raw(chance: random.Random) -> Request:
    accept = chance.choice(("application/json", "application/octet-stream", "application/x-npy"))
    return Request("native", "/v1/embed", picture(chance), {"accept": accept})


def patches(chance: random.Random) -> Request:
    return Request("native patches", "/v1/embed?patches=true", picture(chance), {"accept": "application/x-npy"})


def packed(chance: random.Random) -> Request:
    return Request("native gzip", "/v1/embed", gzip.compress(picture(chance), 1), {"content-encoding": "gzip"})


def multipart(chance: random.Random) -> Request:
    files = [picture(chance) for _ in range(chance.randint(1, 8))]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    body = b"".join(head + file + b"\r\n" for file in files) + b"--b--\r\n"
    return Request("native multipart", "/v1/embed", body, {"content-type": "multipart/form-data; boundary=b"})


def openai(chance: random.Random) -> Request:
    form = {"model": "fake", "input": texts(chance), "encoding_format": chance.choice(("float", "base64", "int8"))}
    return as_json("openai", "/v1/embeddings", {**form, "dimensions": chance.choice((8, 64))})


def tei(chance: random.Random) -> Request:
    return as_json("tei", chance.choice(("/embed", "/embed_all")), {"inputs": texts(chance)})


def cohere(chance: random.Random) -> Request:
    return as_json("cohere", "/v2/embed", {"images": texts(chance), "embedding_types": ["float", "ubinary"]})


def voyage(chance: random.Random) -> Request:
    inputs = [{"content": [{"type": "image_base64", "image_base64": one}]} for one in texts(chance)]
    return as_json("voyage", "/v1/multimodalembeddings", {"inputs": inputs})


def jina(chance: random.Random) -> Request:
    return as_json("jina", "/v1/multi-vector", {"input": [{"image": one} for one in texts(chance)]})


def weaviate(chance: random.Random) -> Request:
    if chance.random() < 0.5:
        return as_json("weaviate", "/vectorize", {"images": texts(chance)})
    return Request("weaviate", "/vectors", json.dumps({"id": "a", "image": text(chance)}).encode())


def kserve(chance: random.Random) -> Request:
    files = [picture(chance) for _ in range(chance.randint(1, 4))]
    behind = b"".join(struct.pack("<I", len(file)) + file for file in files)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(files)],
              "parameters": {"binary_data_size": len(behind)}}  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": chance.random() < 0.5}}).encode()
    return Request(
        "kserve", "/v2/models/fake/infer", head + behind, {"inference-header-content-length": str(len(head))}
    )


def question(chance: random.Random) -> Request:
    paths = ("/v1/models", "/metrics", "/health/ready", "/v2", "/v2/models/fake", "/info", "/meta", "/v2/models/stats")
    return Request("questions", chance.choice(paths), method="GET")


def broken(chance: random.Random) -> Request:
    data = mutation(chance.randrange(10**6)).data
    return Request("broken images", "/v1/embed", data, due=(*GOOD, *BAD))


def nonsense(chance: random.Random) -> Request:
    body = chance.choice((b"", b"{", b"[]", b'{"input":[1,2]}', b'{"input":["text"]}', b"\0" * 100, b"[" * 5000))
    return Request("nonsense", "/v1/embeddings", body, JSON, BAD)


def missing(chance: random.Random) -> Request:
    path = chance.choice(("/nowhere", "/v2/models/none/infer", "/v1/models/none"))
    return Request("not there", path, method=chance.choice(("GET", "POST")), due=(404, 405))


def leaving(chance: random.Random) -> Request:
    request = chance.choice((raw, openai, multipart, kserve))(chance)
    return request._replace(name="clients that leave", leaves=True, due=(0,))


KINDS: tuple[tuple[Callable[[random.Random], Request], float], ...] = (
    (raw, 6), (patches, 1), (packed, 1), (multipart, 2), (openai, 4), (tei, 2), (cohere, 1), (voyage, 1), (jina, 1),
    (weaviate, 2), (kserve, 2), (question, 2), (broken, 4), (nonsense, 1), (missing, 0.5), (leaving, 1),
)  # fmt: skip


def leave(port: int, request: Request, chance: random.Random) -> None:
    """Send a part of a request, or all of it, and hang up."""
    told = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request.body)}\r\n{told}\r\n"
    whole = head.encode() + request.body
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(whole[: chance.choice((len(whole), chance.randrange(1, len(whole))))])
