"""Weaviate's image modules: img2vec-neural (`/vectors`) and multi2vec-clip (`/vectorize`).

Its Go clients send no Content-Type to `/vectors`, follow no redirects, may send a request twice, and read `error` as a
string from every answer.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from mcbeit import __version__
from mcbeit.serve.call import Call
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.spelling import image_of, images_of
from mcbeit.serve.vectors import Want


class VectorsRequest(BaseModel):
    """One image, for img2vec-neural."""

    id: str = ""
    image: str = Field(description="Base64.")


class VectorizeRequest(BaseModel):
    """Images, for multi2vec-clip; texts are refused, as this is an image-only model."""

    texts: Annotated[list[str], Field(fail_fast=True)] | None = None
    images: Annotated[list[str], Field(fail_fast=True)] | None = None


async def vectors(call: Call) -> Response:
    """`POST /vectors`: img2vec-neural."""
    form = await call.form(VectorsRequest)
    (vector,) = await call.matrix([image_of(form.image, "image")], Want())
    return JSONResponse({"id": form.id, "vector": vector.tolist(), "dim": len(vector)})


async def vectorize(call: Call) -> Response:
    """`POST /vectorize`: multi2vec-clip."""
    form = await call.form(VectorizeRequest)
    if form.texts:
        raise invalid("image-only model: it has no vectors of texts", code="modality_not_supported", param="texts")
    images = images_of(form.images or [], "images")
    found = (await call.matrix(images, Want())).tolist() if form.images else []
    return JSONResponse({"textVectors": [], "imageVectors": found})


async def well_known(call: Call) -> Response:
    """`GET /.well-known/ready`: 204 if requests should be sent here, else 503."""
    if (reason := call.service.unready_because()) is not None and call.request.url.path.endswith("ready"):
        raise RequestError(503, "not_ready", f"not ready: {reason}")
    return Response(status_code=204)


async def meta(call: Call) -> Response:
    """`GET /meta`: what the model is."""
    spec = call.model().spec
    told: dict[str, Any] = {"name": spec.name, "dim": spec.dim, "image_size": spec.image_size, "mcbeit": __version__}
    return JSONResponse({**told, "fingerprint": spec.fingerprint})
