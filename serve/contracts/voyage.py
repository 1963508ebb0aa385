"""Voyage's `/v1/multimodalembeddings`, and Jina's `/v1/multi-vector`; Jina's vectors are at `/v1/embeddings`."""

from typing import Any, Literal

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.contracts.cohere import only_images
from mcbeit.serve.spelling import images_of
from mcbeit.serve.vectors import Want, to_json


class VoyageRequest(BaseModel):
    """Inputs of one image each."""

    model: str | None = None
    inputs: list[Any] = Field(
        min_length=1, description='[{"content": [{"type": "image_base64", "image_base64": ...}]}]'
    )
    input_type: str | None = None
    truncation: bool | None = None
    output_encoding: Literal["base64"] | None = None
    output_dimension: int | None = None


class MultiVectorRequest(BaseModel):
    """Images as Jina's clients write them."""

    model: str | None = None
    input: list[Any] = Field(min_length=1)
    dimensions: int | None = None
    normalized: bool | None = None
    embedding_type: Literal["float", "base64"] = "float"
    return_multivector: bool = True


async def multimodal(call: Call) -> Response:
    """`POST /v1/multimodalembeddings`: a vector per image."""
    form = await call.form(VoyageRequest)
    model = call.model(form.model)
    found = await call.matrix(only_images(form.inputs), Want.of(model.spec, dimensions=form.output_dimension))
    encoding: Literal["float", "base64"] = form.output_encoding or "float"
    data = [{"object": "embedding", "index": index, "embedding": to_json(vector, encoding)}
            for index, vector in enumerate(found)]  # fmt: skip
    usage = {"text_tokens": 0, "image_pixels": model.spec.image_size**2 * len(found),
             "total_tokens": model.num_tokens * len(found)}  # fmt: skip
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})


async def multi_vector(call: Call) -> Response:
    """`POST /v1/multi-vector`: the vectors of all patches of each image, of unit length, for late interaction."""
    form = await call.form(MultiVectorRequest)
    model = call.model(form.model)
    normalize = True if form.normalized is None else form.normalized
    want = Want.of(model.spec, pooling="patch", dimensions=form.dimensions, normalize=normalize)
    found = await call.matrix(images_of(form.input, "input"), want)
    data = [
        {"object": "embeddings", "index": index,
         "embeddings": [to_json(row, form.embedding_type) for row in patches.reshape(-1, patches.shape[-1])]}
        for index, patches in enumerate(found)
    ]  # fmt: skip
    tokens = model.num_tokens * len(found)
    return JSONResponse({"object": "list", "model": model.name, "data": data,
                         "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})  # fmt: skip
