"""text-embeddings-inference, Cohere with its own client, Voyage and Jina."""

import base64
from typing import Any

import cohere
import httpx
import numpy as np
import pytest

from mcbeit.serve.vectors import to_json


def uri(text: str) -> str:
    return f"data:image/png;base64,{text}"


def test_tei__embed(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    for path in ("/embed", "/invocations"):
        np.testing.assert_allclose(client.post(path, json={"inputs": texts}).json(), vectors, atol=1e-6)
    answer = client.post("/embed", json={"inputs": uri(texts[0]), "truncate": True, "dimensions": 8})
    cut = vectors[0, :8] / np.linalg.norm(vectors[0, :8])
    np.testing.assert_allclose(answer.json(), [cut], atol=1e-6)
    assert {"x-total-time", "x-queue-time", "x-inference-time"} <= answer.headers.keys()


def test_tei__embed_all(client: httpx.Client, texts: list[str], patch_vectors: np.ndarray) -> None:
    np.testing.assert_allclose(client.post("/embed_all", json={"inputs": texts}).json(), patch_vectors, atol=1e-5)


def test_tei__info_and_health(client: httpx.Client) -> None:
    told = client.get("/info").json()
    assert (told["model_id"], told["max_client_batch_size"]) == ("fake", 256)
    assert client.get("/health").status_code == 200
    assert client.get("/ping").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": []}, 400, "Empty"),
        ({"inputs": "a text"}, 422, "Validation"),
        ({"inputs": ["A" * 64]}, 422, "Validation"),
        ({}, 422, "Validation"),
        ({"inputs": ["A" * 64] * 300}, 413, "Validation"),
    ],
)
def test_tei__errors(client: httpx.Client, body: dict[str, Any], status: int, kind: str) -> None:
    answer = client.post("/embed", json=body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
    assert isinstance(answer.json()["error"], str)


def test_cohere__its_own_client(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    http = httpx.Client(timeout=60)
    with http:
        sdk = cohere.ClientV2("no key", base_url=str(client.base_url).rstrip("/"), httpx_client=http)
        kinds = ["float", "int8", "uint8", "binary", "ubinary"]
        found = sdk.embed(
            model="fake", input_type="image", images=[uri(text) for text in texts], embedding_types=kinds
        ).embeddings  # fmt: skip
        np.testing.assert_allclose(found.float_, vectors, atol=1e-6)
        assert found.int8 == [to_json(vector, "int8") for vector in vectors]
        assert found.ubinary == [to_json(vector, "ubinary") for vector in vectors]
        content = [{"content": [{"type": "image_url", "image_url": {"url": uri(text)}}]} for text in texts]
        again = sdk.embed(model="fake", input_type="image", inputs=content, embedding_types=["float"])
        np.testing.assert_allclose(again.embeddings.float_, vectors, atol=1e-6)
        with pytest.raises(cohere.errors.BadRequestError, match="image-only model"):
            sdk.embed(model="fake", input_type="search_query", texts=["a cat"], embedding_types=["float"])


@pytest.mark.parametrize(
    "body",
    [{}, {"images": ["A" * 64], "inputs": []}, {"inputs": [{"content": []}]}, {"inputs": [5]}, {"images": ["text"]},
     {"inputs": [{"content": [{"type": "text", "text": "a"}]}]}, {"images": ["A" * 64], "embedding_types": ["int4"]}],
)  # fmt: skip
def test_cohere__errors(client: httpx.Client, body: dict[str, Any]) -> None:
    answer = client.post("/v2/embed", json=body)
    assert 400 <= answer.status_code < 500
    assert isinstance(answer.json()["message"], str)


def test_voyage(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    inputs = [{"content": [{"type": "image_base64", "image_base64": uri(text)}]} for text in texts]
    told = client.post("/v1/multimodalembeddings", json={"inputs": inputs, "model": "fake"}).json()
    np.testing.assert_allclose([datum["embedding"] for datum in told["data"]], vectors, atol=1e-6)
    packed = client.post("/v1/multimodalembeddings", json={"inputs": inputs, "output_encoding": "base64"}).json()
    first = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(first, vectors[0], atol=1e-6)
    refused = client.post("/v1/multimodalembeddings", json={"inputs": [{"content": [{"type": "text", "text": "a"}]}]})
    assert (refused.status_code, "image-only model" in refused.json()["detail"]) == (400, True)


def test_jina__multi_vector(client: httpx.Client, texts: list[str], patch_vectors: np.ndarray) -> None:
    body = {"input": [{"image": text} for text in texts], "model": "fake", "return_multivector": True}
    told = client.post("/v1/multi-vector", json=body).json()
    unit = patch_vectors / np.linalg.norm(patch_vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose([datum["embeddings"] for datum in told["data"]], unit, atol=1e-5)
    assert isinstance(client.post("/v1/multi-vector", json={"input": ["text"]}).json()["detail"], str)


def test_jina__as_its_clients_ask(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    body = {"model": "fake", "input": [{"image": text} for text in texts], "embedding_type": "float", "dimensions": 64}
    told = client.post("/v1/embeddings", json=body).json()
    np.testing.assert_allclose([datum["embedding"] for datum in told["data"]], vectors, atol=1e-6)
