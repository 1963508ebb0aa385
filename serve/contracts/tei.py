"""text-embeddings-inference, with images where it has texts: `/embed`, `/embed_all`, `/info`, `/health`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from mcbeit import __version__
from mcbeit.serve.call import Call
from mcbeit.serve.endpoint import Family
from mcbeit.serve.errors import RequestError
from mcbeit.serve.payload import Payload
from mcbeit.serve.spelling import images_of
from mcbeit.serve.vectors import Want, to_json

KINDS = {400: "Empty", 413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


class EmbedRequest(BaseModel):
    """Images as data URIs or base64."""

    inputs: Any = Field(description="One image or a list.")
    normalize: bool | None = Field(None, description="Default: as the model says.")
    truncate: bool | None = Field(None, description="Nothing is truncated; taken for the clients that send it.")
    dimensions: int | None = None

    def images(self) -> Iterator[Payload]:
        """What is to be embedded. Raises RequestError."""
        items = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        if not items:
            raise RequestError(400, "empty_input", "inputs is empty")
        return images_of(items, "inputs")


def _status(error: RequestError) -> int:
    """422 for inputs that are wrong, 400 for none."""
    return 422 if error.status in (400, 415) and error.code != "empty_input" else error.status


def _body(error: RequestError) -> dict[str, Any]:
    """An error as it writes it."""
    return {"error": error.message, "error_type": KINDS.get(_status(error), "Backend")}


ERRORS = Family(_body, _status)


async def embed(call: Call) -> Response:
    """`POST /embed`: a vector per image."""
    form = await call.form(EmbedRequest)
    want = Want.of(call.model().spec, dimensions=form.dimensions, normalize=form.normalize)
    return JSONResponse(to_json(await call.matrix(form.images(), want), "float"))


async def embed_all(call: Call) -> Response:
    """`POST /embed_all`: the vectors of all patches of each image, row by row."""
    form = await call.form(EmbedRequest)
    want = Want.of(call.model().spec, pooling="patch", dimensions=form.dimensions, normalize=form.normalize)
    found = await call.matrix(form.images(), want)
    return JSONResponse(found.reshape(len(found), -1, found.shape[-1]).tolist())


async def info(call: Call) -> Response:
    """`GET /info`: the model and the limits."""
    model, limits = call.model(), call.service.config.limits
    return JSONResponse({
        "model_id": model.name, "model_sha": model.revision, "model_dtype": model.spec.precision,
        "model_type": {"embedding": {"pooling": model.spec.pooling}}, "max_concurrent_requests": limits.waiting_items,
        "max_input_length": model.num_tokens, "max_batch_tokens": model.num_tokens * call.service.config.batch.max_size,
        "max_client_batch_size": limits.items, "tokenization_workers": 0, "version": __version__,
    })  # fmt: skip


async def health(call: Call) -> Response:
    """`GET /health`: 200 if requests should be sent here, else 503."""
    if (reason := call.service.unready_because()) is not None:
        raise RequestError(503, "not_ready", f"not ready: {reason}")
    return JSONResponse({"status": "ready"})
