"""OpenAI's contract, with its own client and with every spelling of an image that is about."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from serving import serving

from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.vectors import Encoding, to_json

BAD = {"type": "invalid_request_error", "param": "input[0]"}


@pytest.fixture(scope="module")
def sdk(client: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address(client)}/v1", api_key="none", max_retries=0) as found:
        yield found


def address(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def uri(text: str) -> str:
    return f"data:image/png;base64,{text}"


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json=body)


def test_client__as_it_asks_by_default(sdk: openai.OpenAI, texts: list[str], vectors: np.ndarray) -> None:
    answer = sdk.embeddings.create(model="fake", input=[uri(text) for text in texts])
    np.testing.assert_allclose([datum.embedding for datum in answer.data], vectors, atol=1e-6)
    assert [datum.index for datum in answer.data] == [0, 1, 2]
    assert answer.model == "fake"
    assert answer.usage.total_tokens == 3 * 17


def test_client__floats_and_fewer_dimensions(sdk: openai.OpenAI, texts: list[str], vectors: np.ndarray) -> None:
    answer = sdk.embeddings.create(model="fake", input=uri(texts[0]), encoding_format="float", dimensions=16)
    cut = vectors[0, :16] / np.linalg.norm(vectors[0, :16])
    np.testing.assert_allclose(answer.data[0].embedding, cut, atol=1e-6)


def test_client__models(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert model.id == "fake"
    assert sdk.models.retrieve("fake").owned_by == "mcbeit"


def test_client__errors_are_its_own_kinds(sdk: openai.OpenAI, texts: list[str]) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here; served: fake") as caught:
        sdk.embeddings.create(model="other", input=uri(texts[0]))
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="image-only model"):
        sdk.embeddings.create(model="fake", input="a text")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        sdk.embeddings.create(model="fake", input=[[1, 2, 3], [4]])


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: uri(text),
        lambda text: uri(text).replace("data:image/png", "DATA:image/webp;charset=x"),
        lambda text: text,
        lambda text: {"image": text},
        lambda text: {"image": uri(text)},
        lambda text: {"bytes": text},
        lambda text: {"url": uri(text)},
        lambda text: {"type": "image_url", "image_url": {"url": uri(text)}},
        lambda text: {"type": "image_url", "image_url": uri(text)},
        lambda text: {"type": "image_base64", "image_base64": text},
    ],
)
def test_input__every_spelling(client: httpx.Client, spell: Any, texts: list[str], vectors: np.ndarray) -> None:
    one = post(client, input=spell(texts[0]))
    assert one.status_code == 200, one.text
    many = post(client, input=[spell(text) for text in texts])
    found = [datum["embedding"] for datum in many.json()["data"]]
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    np.testing.assert_allclose(one.json()["data"][0]["embedding"], vectors[0], atol=1e-6)


def test_messages(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    parts = [{"type": "image_url", "image_url": {"url": uri(text)}} for text in texts]
    found = post(client, messages=[{"role": "user", "content": parts[:2]}, {"role": "user", "content": parts[2:]}])
    np.testing.assert_allclose([datum["embedding"] for datum in found.json()["data"]], vectors, atol=1e-6)


def test_request__without_content_type_or_with_another(client: httpx.Client, texts: list[str]) -> None:
    body = b'{"input": "%s"}' % texts[0].encode()
    for headers in ({}, {"content-type": "application/x-www-form-urlencoded"}):
        assert client.post("/v1/embeddings", content=body, headers=headers).status_code == 200
    for path in ("/embeddings", "/embeddings_image"):
        assert client.post(path, content=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": []}, 400, "empty_input"),
        ({}, 422, "invalid_request"),
        ({"input": "short"}, 400, "modality_not_supported"),
        ({"input": [5.5]}, 400, "modality_not_supported"),
        ({"input": {"text": "hello"}}, 400, "modality_not_supported"),
        ({"input": "A" * 64}, 415, "unsupported_image_format"),
        ({"input": "A" * 63}, 400, "invalid_base64"),
        ({"input": "data:image/png;base64,%%%"}, 400, "invalid_base64"),
        ({"input": "data:image/png,abc"}, 400, "invalid_data_uri"),
        ({"input": "data:image/png;base64,"}, 400, "empty_image"),
        ({"input": "x", "encoding_format": "text"}, 422, "invalid_request"),
        ({"input": "x", "dimensions": "many"}, 422, "invalid_request"),
        ({"messages": [{"role": "user", "content": "hello"}]}, 400, "modality_not_supported"),
        ({"messages": [5]}, 400, "modality_not_supported"),
        ({"input": ["A" * 64] * 300}, 413, "too_many_items"),
    ],
)
def test_request__mistakes(client: httpx.Client, body: dict[str, Any], status: int, code: str) -> None:
    answer = post(client, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["detail"] == answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"  ", b"{", b"\xff\xfe", b"[]", b"null", b'{"input": NaN}', b"[" * 100_000])
def test_request__that_is_no_json(client: httpx.Client, body: bytes) -> None:
    assert client.post("/v1/embeddings", content=body).status_code in (400, 422)


@pytest.mark.parametrize("dimensions", [0, -1, 65])
def test_dimensions__within_those_of_the_model(client: httpx.Client, texts: list[str], dimensions: int) -> None:
    answer = post(client, input=texts[0], dimensions=dimensions)
    assert answer.json()["error"]["message"] == f"dimensions is {dimensions}; this model has 1 to 64"


def test_normalize__may_be_switched_off(client: httpx.Client, texts: list[str], pictures: list[bytes]) -> None:
    for name in ("normalize", "normalized"):
        found = post(client, input=texts, **{name: False}).json()["data"]
        whole = FakeEncoder(normalize=False).embed(pictures)
        np.testing.assert_allclose([datum["embedding"] for datum in found], whole, rtol=1e-5)


def test_pooling(client: httpx.Client, texts: list[str], patch_vectors: np.ndarray) -> None:
    found = post(client, input=texts[0], pooling="patch").json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.reshape(found, (16, 64)), patch_vectors[0], atol=1e-5)
    assert post(client, input=texts[0], pooling="mean").status_code == 200
    answer = post(client, input=texts[0], pooling="cls")
    assert "was exported with 'mean'; allowed: mean, patch" in answer.json()["error"]["message"]


def test_on_error__null_keeps_the_others(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    answer = post(client, input=[texts[0], "A" * 64, texts[2]], on_error="null").json()["data"]
    assert answer[1]["embedding"] is None
    assert answer[1]["error"]["code"] == "unsupported_image_format"
    np.testing.assert_allclose([answer[0]["embedding"], answer[2]["embedding"]], vectors[[0, 2]], atol=1e-6)


@pytest.mark.parametrize("kind", ["float", "base64", "int8", "uint8", "binary", "ubinary"])
def test_encodings(client: httpx.Client, texts: list[str], vectors: np.ndarray, kind: Encoding) -> None:
    for name in ("encoding_format", "embedding_type"):
        (datum,) = post(client, input=texts[0], **{name: kind}).json()["data"]
        found = datum["embedding"]
        if kind == "base64":
            found = np.frombuffer(base64.b64decode(found), "<f4")
        np.testing.assert_allclose(found, vectors[0] if kind == "base64" else to_json(vectors[0], kind), atol=1e-6)


def test_encodings__by_hand() -> None:
    vector = np.array([0.6, -0.8, 0.0, 1.0, -1.0, 0.1, -0.1, 0.0], np.float32)
    assert to_json(vector, "int8") == [76, -102, 0, 127, -127, 13, -13, 0]
    assert to_json(vector, "uint8") == [204, 26, 128, 255, 1, 141, 115, 128]
    assert to_json(vector, "ubinary") == [0b10110101]
    assert to_json(vector, "binary") == [0b10110101 - 128]


def test_client__with_a_key(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    monkeypatch.setenv("MCBEIT_API_KEYS", "secret")
    with serving() as client:
        url = f"{address(client)}/v1"
        with openai.OpenAI(base_url=url, api_key="secret") as sdk:
            assert len(sdk.embeddings.create(model="fake", input=uri(texts[0])).data[0].embedding) == 64
        wrong = openai.OpenAI(base_url=url, api_key="wrong")
        with wrong, pytest.raises(openai.AuthenticationError, match="no valid API key"):
            wrong.embeddings.create(model="fake", input=uri(texts[0]))
