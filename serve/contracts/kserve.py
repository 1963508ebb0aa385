"""KServe v2, the Open Inference Protocol, with its binary extension: clients of Triton, KServe, Seldon, OpenVINO.

Inputs: `image`, BYTES [n], encoded files (in JSON: base64 or data URIs); or `pixels`, UINT8 [n, size, size, 3], resized
and cropped already. Outputs: `embedding`, FP32 [n, dim]; `patch_tokens`, FP32 [n, patches, dim], if asked for.
"""

import json
import reprlib
import struct
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from mcbeit import __version__
from mcbeit.model_folder import EMBEDDING, PATCH_TOKENS
from mcbeit.serve.call import Call, parse_form
from mcbeit.serve.errors import RequestError, invalid, too_large
from mcbeit.serve.model import ServedModel
from mcbeit.serve.payload import Decoded, Payload, Raw
from mcbeit.serve.spelling import image_of
from mcbeit.serve.vectors import Want

IMAGE, PIXELS = "image", "pixels"
INPUT_TYPES = {IMAGE: "BYTES", PIXELS: "UINT8"}
HEADER_LENGTH = "inference-header-content-length"
BINARY_SIZE, BINARY_DATA = "binary_data_size", "binary_data"
VERSION = "1"


class InputTensor(BaseModel):
    """One input: its numbers are here, or behind the JSON."""

    name: str
    datatype: str
    shape: list[int] = Field(min_length=1, max_length=8)
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: Any = None


class OutputName(BaseModel):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The JSON of a request; parameters may be `normalize` and `dimensions`."""

    id: str | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=8)
    outputs: list[OutputName] = Field(default_factory=list, max_length=8)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Asked(NamedTuple):
    """An output, and whether it is to be behind the JSON."""

    name: str
    is_binary: bool


EXAMPLE = {
    "inputs": [{"name": IMAGE, "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQSkZJRg..."]}],
    "outputs": [{"name": EMBEDDING}],
}


async def server(call: Call) -> Response:
    """`GET /v2`: what this is."""
    return JSONResponse({"name": "mcbeit", "version": __version__, "extensions": ["binary_tensor_data", "statistics"]})


async def model(call: Call) -> Response:
    """`GET /v2/models/{name}`: inputs and outputs."""
    found = _model(call)
    return JSONResponse({
        "name": found.name, "versions": [VERSION], "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": IMAGE, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, *found.pixel_shape]},
        ],
        "outputs": [
            {"name": EMBEDDING, "datatype": "FP32", "shape": [-1, found.spec.dim]},
            {"name": PATCH_TOKENS, "datatype": "FP32", "shape": [-1, found.num_patches, found.spec.patch_dim]},
        ],
    })  # fmt: skip


async def model_ready(call: Call) -> Response:
    """`GET /v2/models/{name}/ready`: 200 if it is."""
    _model(call)
    return await ready(call)


async def live(call: Call) -> Response:
    """`GET /v2/health/live`: 200."""
    return JSONResponse({"live": True})


async def ready(call: Call) -> Response:
    """`GET /v2/health/ready`: 200 if requests should be sent here, else 503."""
    reason = call.service.unready_because()
    if reason is not None:
        raise RequestError(503, "not_ready", f"not ready: {reason}")
    return JSONResponse({"ready": True})


async def config(call: Call) -> Response:
    """`GET /v2/models/{name}/config`: in the manner of Triton."""
    found, batch = _model(call), call.service.config.batch
    return JSONResponse({
        "name": found.name, "platform": "onnxruntime_onnx", "backend": "onnxruntime", "max_batch_size": batch.max_size,
        "input": [{"name": IMAGE, "data_type": "TYPE_STRING", "dims": [1]}],
        "output": [{"name": EMBEDDING, "data_type": "TYPE_FP32", "dims": [found.spec.dim]}],
    })  # fmt: skip


async def statistics(call: Call) -> Response:
    """`GET /v2/models/stats`: counts of every model."""
    models = [_model(call)] if "name" in call.request.path_params else list(call.service.models.values())
    counts = [
        {"name": model.name, "version": VERSION, "inference_count": model.num_images,
         "execution_count": model.batcher.num_batches}
        for model in models
    ]  # fmt: skip
    return JSONResponse({"model_stats": counts})


async def repository(call: Call) -> Response:
    """`POST /v2/repository/index`: the models that are there."""
    return JSONResponse([{"name": name, "version": VERSION, "state": "READY"} for name in call.service.models])


async def infer(call: Call) -> Response:
    """`POST /v2/models/{name}/infer`: images in, vectors out."""
    found = _model(call)
    form, binary, is_raw = await _request(call)
    with call.timings.stage("parse"):
        images = [Raw(bytes(binary))] if is_raw else _images(form, binary, found, call.service.config.limits.items)
        asked = _asked(form, binary_default=is_raw)
    numbers = {name: await call.matrix(images, _want(form, found, name)) for name in {one.name for one in asked}}
    with call.timings.stage("encode"):
        return _answer(found, form, [(one, numbers[one.name]) for one in asked])


def _model(call: Call) -> ServedModel:
    version = call.request.path_params.get("version", VERSION)
    if version != VERSION:
        raise RequestError(404, "model_not_found", f"there is no version {version[:40]} here, only {VERSION}")
    return call.model(call.request.path_params["name"])


async def _request(call: Call) -> tuple[InferRequest, memoryview, bool]:
    """The JSON, what is behind it, and whether it is all one image."""
    body = memoryview(await call.body())
    told = call.request.headers.get(HEADER_LENGTH)
    if told is None:
        return parse_form(InferRequest, bytes(body)), body[len(body) :], False
    if not told.isdecimal() or len(told) > 12 or int(told) > len(body):
        raise invalid(f"Inference-Header-Content-Length is {told[:40]!r}, and the body has {len(body)} bytes")
    length = int(told)
    if length == 0:
        tensor = InputTensor(name=IMAGE, datatype="BYTES", shape=[1])
        return InferRequest(inputs=[tensor]), body, True
    return parse_form(InferRequest, bytes(body[:length])), body[length:], False


def _images(form: InferRequest, binary: memoryview, model: ServedModel, most: int) -> Sequence[Payload]:
    """The images of the one input that is known; the others are passed over. Raises RequestError."""
    found: list[Payload] | None = None
    for tensor in form.inputs:
        part = None
        if (size := tensor.parameters.get(BINARY_SIZE)) is not None:
            if not isinstance(size, int) or not 0 <= size <= len(binary):
                told = f"{BINARY_SIZE} is {reprlib.repr(size)}, and {len(binary)} bytes are left"
                raise invalid(f"input {tensor.name[:40]!r}: {told}")
            part, binary = binary[:size], binary[size:]
        if INPUT_TYPES.get(tensor.name) != tensor.datatype:
            raise invalid(
                f"input {tensor.name[:40]!r} of type {tensor.datatype[:40]!r} is not known; there are image (BYTES) "
                "and pixels (UINT8)"
            )
        if found is not None:
            raise invalid("give image or pixels, not both")
        found = _files(tensor, part, most) if tensor.name == IMAGE else _pixels(tensor, part, model.pixel_shape)
    if len(binary):
        raise invalid(f"{len(binary)} bytes behind the JSON belong to no input")
    assert found is not None
    return found


def _files(tensor: InputTensor, part: memoryview | None, most: int) -> list[Payload]:
    if part is None:
        data = tensor.data if isinstance(tensor.data, list) else [tensor.data]
        items = [item for row in data for item in (row if isinstance(row, list) else [row])]
        found: list[Payload] = [image_of(item, f"input[{index}]") for index, item in enumerate(items)]
    else:
        found = [Raw(bytes(element)) for element in _elements(part, most)]
    _check_count(tensor, len(found))
    return found


def _elements(part: memoryview, most: int) -> list[memoryview]:
    """Each with its length in four bytes before it, little-endian."""
    found: list[memoryview] = []
    at = 0
    while at < len(part):
        if at + 4 > len(part) or at + 4 + (length := struct.unpack_from("<I", part, at)[0]) > len(part):
            raise invalid("input image: the lengths of its elements do not fit its bytes")
        if len(found) == most:
            raise too_large(f"the request has more than the {most} images allowed", code="too_many_items")
        found.append(part[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _pixels(tensor: InputTensor, part: memoryview | None, shape: tuple[int, ...]) -> list[Payload]:
    if tuple(tensor.shape[1:]) != shape:
        raise invalid(
            f"input pixels has the shape {tensor.shape}; this model takes [n, {', '.join(map(str, shape))}]: resized "
            "and cropped, rows first, red green blue"
        )
    values = _whole_numbers(tensor.data) if part is None else np.frombuffer(part, np.uint8)
    _check_count(tensor, len(values))
    return [Decoded(image) for image in values.reshape(-1, *shape)]


def _whole_numbers(data: Any) -> np.ndarray:
    """Nested lists as one row of uint8. Not by `np.array`, which gives every string the room of the longest."""
    try:
        while data and isinstance(data[0], list):
            if len(set(map(len, data))) > 1:
                raise invalid("input pixels: its data is not an array")
            data = list(chain.from_iterable(data))
        return np.frombuffer(bytes(data if isinstance(data, list) else [data]), np.uint8)
    except (TypeError, ValueError, KeyError) as error:
        raise invalid("input pixels: its data must be whole numbers from 0 to 255") from error


def _check_count(tensor: InputTensor, count: int) -> None:
    if min(tensor.shape) < 0 or prod(tensor.shape) != count:
        raise invalid(f"input {tensor.name}: the shape {tensor.shape} does not fit its {count} elements")


def _asked(form: InferRequest, *, binary_default: bool) -> list[Asked]:
    default = bool(form.parameters.get("binary_data_output", binary_default))
    names = [one.name for one in form.outputs]
    if unknown := [name for name in names if name not in (EMBEDDING, PATCH_TOKENS)]:
        raise invalid(f"output {unknown[0][:40]!r} is not known; there are {EMBEDDING} and {PATCH_TOKENS}")
    asked = [Asked(one.name, bool(one.parameters.get(BINARY_DATA, default))) for one in form.outputs]
    return asked or [Asked(EMBEDDING, default)]


def _want(form: InferRequest, model: ServedModel, output: str) -> Want:
    dimensions, normalize = form.parameters.get("dimensions"), form.parameters.get("normalize")
    if not (dimensions is None or type(dimensions) is int) or not (normalize is None or type(normalize) is bool):
        raise invalid("parameters: dimensions must be a number, normalize true or false")
    pooling = "patch" if output == PATCH_TOKENS else None
    return Want.of(model.spec, pooling=pooling, dimensions=dimensions, normalize=normalize)


def _answer(model: ServedModel, form: InferRequest, found: list[tuple[Asked, np.ndarray]]) -> Response:
    outputs, behind = [], []
    for asked, numbers in found:
        if asked.name == PATCH_TOKENS:
            numbers = numbers.reshape(len(numbers), -1, numbers.shape[-1])
        told: dict[str, Any] = {"name": asked.name, "datatype": "FP32", "shape": list(numbers.shape)}
        if asked.is_binary:
            behind.append(numbers.astype("<f4", copy=False).tobytes())
            told["parameters"] = {BINARY_SIZE: len(behind[-1])}
        else:
            told["data"] = numbers.reshape(-1).tolist()
        outputs.append(told)
    head: dict[str, Any] = {"model_name": model.name, "model_version": VERSION, "outputs": outputs}
    head |= {} if form.id is None else {"id": form.id}
    if not behind:
        return JSONResponse(head)
    text = json.dumps(head).encode()
    return Response(
        b"".join([text, *behind]), media_type="application/octet-stream", headers={HEADER_LENGTH: str(len(text))}
    )
