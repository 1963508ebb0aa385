"""The native contract: files in, numbers out."""

import io
from typing import Any

import httpx
import numpy as np
import pytest

FLOAT32 = {"accept": "application/octet-stream"}


def test_embed__raw_in_float32_out(client: httpx.Client, pictures: list[bytes], vectors: np.ndarray) -> None:
    answer = client.post("/v1/embed", content=pictures[0], headers=FLOAT32)
    assert answer.headers["x-embedding-dim"] == "64"
    assert answer.headers["x-embedding-shape"] == "1,64"
    np.testing.assert_allclose(np.frombuffer(answer.content, "<f4"), vectors[0], atol=1e-6)


def test_embed__parts_in_npy_out(client: httpx.Client, pictures: list[bytes], vectors: np.ndarray) -> None:
    files = [("file", (f"{index}", data)) for index, data in enumerate(pictures)]
    answer = client.post("/v1/embed", files=files, headers={"accept": "application/x-npy"})
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), vectors, atol=1e-6)


def test_embed__patches(client: httpx.Client, pictures: list[bytes], patch_vectors: np.ndarray) -> None:
    files = [("file", (f"{index}", data)) for index, data in enumerate(pictures)]
    answer = client.post("/v1/embed?patches=true", files=files, headers=FLOAT32)
    assert answer.headers["x-embedding-shape"] == "3,4,4,64"
    np.testing.assert_allclose(np.frombuffer(answer.content, "<f4").reshape(3, 16, 64), patch_vectors, atol=1e-5)


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/html, application/*;q=0.8"])
def test_embed__json_by_default(client: httpx.Client, pictures: list[bytes], accept: str, vectors: np.ndarray) -> None:
    answer = client.post("/v1/embed?dimensions=8&normalize=true", content=pictures[0], headers={"accept": accept})
    assert answer.json()["shape"] == [1, 8]
    cut = vectors[0, :8] / np.linalg.norm(vectors[0, :8])
    np.testing.assert_allclose(answer.json()["embeddings"][0], cut, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"params": {"dimensions": "many"}}, 400, "invalid_request"),
        ({"params": {"dimensions": "1000"}}, 400, "invalid_request"),
        ({"params": {"patches": "perhaps"}}, 400, "invalid_request"),
        ({"params": {"model": "none"}}, 404, "model_not_found"),
        ({"headers": {"accept": "text/html"}}, 406, "not_acceptable"),
        ({"headers": {"content-type": "multipart/form-data"}}, 400, "invalid_multipart"),
        ({"headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "invalid_multipart"),
    ],
)
def test_embed__mistakes(
    client: httpx.Client, pictures: list[bytes], options: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/v1/embed", content=pictures[0], **options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_embed__parts_without_a_file(client: httpx.Client) -> None:
    answer = client.post("/v1/embed", files=[("file", (None, b"text"))])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "empty_input")


def test_embed__too_many_parts(client: httpx.Client, pictures: list[bytes]) -> None:
    answer = client.post("/v1/embed", files=[("file", ("a", pictures[0][:50]))] * 257)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_items")
