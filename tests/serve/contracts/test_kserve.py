"""KServe v2, with Triton's client and by bytes."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from mcbeit.preprocess import Preprocess

PATH = "/v2/models/fake/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture
def sdk(client: httpx.Client) -> Iterator[triton.InferenceServerClient]:
    address = f"{client.base_url.host}:{client.base_url.port}"
    with triton.InferenceServerClient(address, network_timeout=60) as found:
        yield found


def image_input(pictures: list[bytes], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    tensor.set_data_from_numpy(np.array(pictures, dtype=np.object_), binary_data=binary)
    return tensor


def test_client__health_and_metadata(sdk: triton.InferenceServerClient) -> None:
    assert sdk.is_server_live()
    assert sdk.is_server_ready()
    assert sdk.is_model_ready("fake")
    assert sdk.is_model_ready("fake", "1")
    assert not sdk.is_model_ready("fake", "2")
    assert not sdk.is_model_ready("other")
    assert "binary_tensor_data" in sdk.get_server_metadata()["extensions"]
    told = sdk.get_model_metadata("fake")
    assert [tensor["name"] for tensor in told["inputs"]] == ["image", "pixels"]
    assert told["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": [-1, 64]}
    assert sdk.get_model_config("fake")["max_batch_size"] == 32
    assert sdk.get_model_repository_index() == [{"name": "fake", "version": "1", "state": "READY"}]
    assert sdk.get_inference_statistics()["model_stats"][0]["name"] == "fake"
    assert sdk.get_inference_statistics("fake")["model_stats"][0]["name"] == "fake"


def test_client__as_it_asks_by_default(
    sdk: triton.InferenceServerClient, pictures: list[bytes], vectors: np.ndarray
) -> None:
    found = sdk.infer("fake", [image_input(pictures)], request_id="7")
    np.testing.assert_allclose(found.as_numpy("embedding"), vectors, atol=1e-6)
    assert found.get_response()["id"] == "7"


@pytest.mark.parametrize("binary", [True, False])
def test_client__outputs(
    sdk: triton.InferenceServerClient, pictures: list[bytes], vectors: np.ndarray, patch_vectors: np.ndarray,
    binary: bool,
) -> None:  # fmt: skip
    names = ("embedding", "patch_tokens")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    found = sdk.infer("fake", [image_input(pictures)], outputs=outputs)
    np.testing.assert_allclose(found.as_numpy("embedding"), vectors, atol=1e-6)
    np.testing.assert_allclose(found.as_numpy("patch_tokens"), patch_vectors, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_client__pixels(
    sdk: triton.InferenceServerClient, pictures: list[bytes], vectors: np.ndarray, binary: bool
) -> None:
    pixels = np.stack([Preprocess(image_size=64).pixels(data) for data in pictures])
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    found = sdk.infer("fake", [tensor], parameters={"dimensions": 8})
    cut = vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(found.as_numpy("embedding"), cut, atol=1e-6)


def test_client__errors(sdk: triton.InferenceServerClient, pictures: list[bytes]) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        sdk.infer("other", [image_input(pictures)])
    with pytest.raises(InferenceServerException, match="not an image file"):
        sdk.infer("fake", [image_input([*pictures, b"nothing"])])
    wrong = triton.InferInput("pixels", [1, 8, 8, 3], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(InferenceServerException, match=r"this model takes \[n, 64, 64, 3\]"):
        sdk.infer("fake", [wrong])


def test_infer__json_alone(client: httpx.Client, texts: list[str], vectors: np.ndarray) -> None:
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3, 1], "data": [[text] for text in texts]}]}
    (output,) = client.post(PATH, json=body).json()["outputs"]
    assert output["shape"] == [3, 64]
    np.testing.assert_allclose(np.reshape(output["data"], (3, 64)), vectors, atol=1e-6)


def test_infer__one_image_and_nothing_else(client: httpx.Client, pictures: list[bytes], vectors: np.ndarray) -> None:
    answer = client.post(PATH, content=pictures[0], headers={LENGTH: "0"})
    length = int(answer.headers[LENGTH])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 256}
    np.testing.assert_allclose(np.frombuffer(answer.content[length:], "<f4"), vectors[0], atol=1e-6)


def infer(client: httpx.Client, head: Any, binary: bytes, length: str | None = None) -> httpx.Response:
    text = json.dumps(head).encode()
    return client.post(PATH, content=text + binary, headers={LENGTH: length or str(len(text))})


def tensor(**options: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], **options}]}


def pixels(count: int, data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [count, 64, 64, 3], "data": data}]}


BYTES = {"parameters": {"binary_data_size": 8}}
FOUR = struct.pack("<I", 4) + b"abcd"


@pytest.mark.parametrize(
    ("head", "binary", "told"),
    [
        (tensor(parameters={"binary_data_size": 9}), FOUR, "binary_data_size is 9, and 8 bytes are left"),
        (tensor(parameters={"binary_data_size": -1}), FOUR, "binary_data_size is -1"),
        (tensor(parameters={"binary_data_size": "8"}), FOUR, "binary_data_size is '8'"),
        (tensor(**BYTES), FOUR + b"more", "4 bytes behind the JSON belong to no input"),
        (tensor(**BYTES), struct.pack("<I", 5) + b"abcd", "lengths of its elements do not fit"),
        (tensor(**BYTES), struct.pack("<I", 2**32 - 1) + b"abcd", "lengths of its elements do not fit"),
        (tensor(**{**BYTES, "shape": [2]}), FOUR, "shape [2] does not fit its 1 elements"),
        (tensor(**{**BYTES, "shape": [-1]}), FOUR, "shape [-1] does not fit"),
        (tensor(**{**BYTES, "shape": [2**62, 2**62]}), FOUR, "does not fit its 1 elements"),
        (tensor(**{**BYTES, "datatype": "FP32"}), FOUR, "there are image (BYTES) and pixels (UINT8)"),
        (tensor(name="other"), b"", "input 'other' of type 'BYTES' is not known"),
        (tensor(data=["%%"]), b"", "input[0]: this is text"),
        (tensor(), b"", "input[0]: an image is"),
        ({**tensor(data=["A" * 64]), "outputs": [{"name": "logits"}]}, b"", "output 'logits' is not known"),
        ({**tensor(data=["A" * 64]), "parameters": {"dimensions": "x"}}, b"", "dimensions must be a number"),
        ({"inputs": []}, b"", "inputs:"),
        (pixels(1, [1, 300]), b"", "0 to 255"),
        (pixels(1, [[1], [1, 2]]), b"", "not an"),
        (pixels(1, [1, 2]), b"", "2 elements"),
        (pixels(0, []), b"", "no images"),
    ],
)  # fmt: skip
def test_infer__mistakes(client: httpx.Client, head: Any, binary: bytes, told: str) -> None:
    answer = infer(client, head, binary)
    assert answer.status_code in (400, 422), answer.text
    assert told in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1e3", "9" * 30])
def test_infer__a_length_that_is_none(client: httpx.Client, length: str) -> None:
    answer = infer(client, tensor(), b"", length)
    assert (answer.status_code, "Inference-Header-Content-Length" in answer.json()["error"]) == (400, True)
