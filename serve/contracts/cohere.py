"""Cohere's `/v2/embed`, for images."""

from collections.abc import Iterable, Iterator
from secrets import token_hex
from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.endpoint import Family
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.payload import Payload
from mcbeit.serve.spelling import image_of, images_of
from mcbeit.serve.vectors import Encoding, Want, to_json


class CohereRequest(BaseModel):
    """Exactly one of images and inputs; texts are refused."""

    model: str | None = None
    images: Annotated[list[str], Field(fail_fast=True)] | None = Field(None, description="Data URIs.")
    inputs: list[Any] | None = Field(None, description='[{"content": [{"type": "image_url", "image_url": {...}}]}]')
    texts: Annotated[list[str], Field(fail_fast=True)] | None = None
    input_type: str | None = None
    embedding_types: Annotated[list[Encoding], Field(fail_fast=True)] = ["float"]
    output_dimension: int | None = None

    def payloads(self) -> Iterator[Payload]:
        """What is to be embedded. Raises RequestError."""
        if self.texts:
            raise invalid("texts: this is an image-only model", code="modality_not_supported", param="texts")
        if (self.images is None) == (self.inputs is None):
            raise invalid("give exactly one of images and inputs", param="images")
        if self.images is not None:
            return images_of(self.images, "images")
        return only_images(self.inputs or [])


def _body(error: RequestError) -> dict[str, Any]:
    """An error as its clients read it."""
    return {"id": token_hex(8), "message": error.message}


ERRORS = Family(_body)


async def embed(call: Call) -> Response:
    """`POST /v2/embed`: a vector per image, in every type that is asked for."""
    form = await call.form(CohereRequest)
    model = call.model(form.model)
    found = await call.matrix(form.payloads(), Want.of(model.spec, dimensions=form.output_dimension))
    with call.timings.stage("encode"):
        embeddings = {kind: [to_json(vector, kind) for vector in found] for kind in form.embedding_types}
        return JSONResponse({
            "id": token_hex(8), "response_type": "embeddings_by_type", "embeddings": embeddings, "texts": [],
            "images": [], "meta": {"api_version": {"version": "2"}, "billed_units": {"images": len(found)}},
        })  # fmt: skip


def only_images(items: Iterable[Any]) -> Iterator[Payload]:
    """The images of a list of `{"content": [...]}`, one by one."""
    return (_only_image(item, f"inputs[{index}]") for index, item in enumerate(items))


def _only_image(item: Any, where: str) -> Payload:
    """The image of `{"content": [...]}`. Raises RequestError if there is none, or something beside it."""
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(content, list) or len(content) != 1:
        raise invalid(
            f"{where}: content must be a list of one image; this model makes no vector of several things",
            code="modality_not_supported", param=where,
        )  # fmt: skip
    return image_of(content[0], where)
