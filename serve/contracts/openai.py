"""`/v1/embeddings` and `/v1/models` as OpenAI's clients know them, with every spelling of an image that is about.

Jina's clients speak to the same route; their names of options are taken too.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.endpoint import new_id
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.model import ServedModel
from mcbeit.serve.payload import Payload
from mcbeit.serve.spelling import images_of, images_of_messages
from mcbeit.serve.vectors import Encoding, Want, to_json

PIXEL = (  # one, red
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
EXAMPLE = {
    "model": "demo",
    "input": [f"data:image/png;base64,{PIXEL}"],
    "encoding_format": "float",
}  # fmt: skip
MAX_TEXT = 60  # characters of the caller's own text that an error repeats


class EmbeddingsRequest(BaseModel):
    """OpenAI's body, with what image clients add to it. Fields that are not here are ignored."""

    model: str | None = Field(None, description="One of /v1/models; default: the first.")
    input: Any = Field(
        None,
        description="One image or a list: a data URI, bare base64, an http(s) address (if the service allows them), "
        '{"image": ...}, {"bytes": ...}, {"url": ...} or {"type": "image_url", "image_url": {"url": ...}}.',
    )
    messages: list[Any] | None = Field(None, description="vLLM's form: the images in the content of chat messages.")
    encoding_format: Encoding | None = Field(None, description="float, or base64 of little-endian float32; more below.")
    embedding_type: Encoding | None = Field(None, description="Jina's name of encoding_format.")
    dimensions: int | None = Field(None, description="Keep the first so many numbers, then scale to unit length.")
    pooling: str | None = Field(None, max_length=40, description="The model's own, or patch: a vector per patch.")
    normalize: bool | None = Field(
        None, validation_alias=AliasChoices("normalize", "normalized"), description="Default: as the model says."
    )
    modality: Literal["image"] | None = None
    on_error: Literal["fail", "null"] = Field(
        "fail", description="null: an image that cannot be read gives `embedding: null` and its error."
    )

    @model_validator(mode="after")
    def _has_images(self) -> "EmbeddingsRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("give the images as input, or as messages")
        return self

    @property
    def encoding(self) -> Encoding:
        """How vectors are written."""
        return self.encoding_format or self.embedding_type or "float"

    def images(self) -> Iterator[Payload]:
        """What is to be embedded. Raises RequestError."""
        if self.messages is not None:
            return images_of_messages(self.messages)
        items = self.input if isinstance(self.input, list) else [self.input]
        if items and all(isinstance(item, int) or _is_tokens(item) for item in items):
            raise invalid(
                "input holds token ids, and this model embeds images; with LangChain's OpenAIEmbeddings set "
                "check_embedding_ctx_length=False",
                code="modality_not_supported", param="input",
            )  # fmt: skip
        return images_of(items, "input")


async def embeddings(call: Call) -> Response:
    """`POST /v1/embeddings`."""
    form = await call.form(EmbeddingsRequest)
    model = call.model(form.model)
    want = Want.of(model.spec, pooling=form.pooling, dimensions=form.dimensions, normalize=form.normalize)
    found = await call.vectors(form.images(), want, keep_errors=form.on_error == "null")
    with call.timings.stage("encode"):
        data = [_datum(index, one, form.encoding) for index, one in enumerate(found)]
        tokens = model.num_tokens * len(found)
        return JSONResponse({
            "object": "list", "id": new_id("embd"), "created": int(time.time()), "model": model.name,
            "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })  # fmt: skip


async def models(call: Call) -> Response:
    """`GET /v1/models`."""
    return JSONResponse({"object": "list", "data": [describe(call, model) for model in call.service.models.values()]})


async def one_model(call: Call) -> Response:
    """`GET /v1/models/{name}`."""
    return JSONResponse(describe(call, call.model(call.request.path_params["name"])))


async def reload(call: Call) -> Response:
    """`POST /v1/models/{name}/reload`: what is in its folder now takes over, without a pause."""
    name = call.request.path_params["name"]
    return JSONResponse(describe(call, await call.service.reload(name)))


def describe(call: Call, model: ServedModel) -> dict[str, Any]:
    """A model as `/v1/models` tells it; `stats` as infinity's, which autoscalers read."""
    limits, spec = call.service.config.limits, model.spec
    return {
        "id": model.name, "object": "model", "created": model.loaded_at, "owned_by": "mcbeit",
        "dimensions": spec.dim, "pooling": spec.pooling, "image_size": spec.image_size, "revision": model.revision,
        "capabilities": ["image_embed", "patch_embed"], "spec": spec.model_dump(mode="json"),
        "max_items": limits.items, "max_body_bytes": limits.body_bytes, "max_image_bytes": limits.image_bytes,
        "formats": list(limits.formats), "stats": {"queue_fraction": round(call.service.admission.load, 4)},
    }  # fmt: skip


def _datum(index: int, found: Any, encoding: Encoding) -> dict[str, Any]:
    datum: dict[str, Any] = {"object": "embedding", "index": index}
    if isinstance(found, RequestError):
        return {**datum, "embedding": None, "error": {"message": found.message, "code": found.code}}
    return {**datum, "embedding": to_json(found, encoding)}


def _is_tokens(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(isinstance(number, int) for number in item)
