"""`/v1/embed`: the file itself in, the numbers themselves out. No base64, no JSON: the fastest way."""

import io
from typing import Any

import numpy as np
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.payload import Payload, Raw
from mcbeit.serve.vectors import Want, to_json

JSON, NPY, FLOAT32 = "application/json", "application/x-npy", "application/octet-stream"
MULTIPART = "multipart/form-data"
TRUE = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class _FormParser(MultiPartParser):
    """Knows whether the last boundary came: without it, Starlette leaves the last part out and says nothing."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    def close(self) -> None:
        """Let go of the parts, which may not all be in the form."""
        for file in self._files_to_close_on_error:
            file.close()


async def embed(call: Call) -> Response:
    """`POST /v1/embed`: one file as the body, or several as parts named `file` of multipart/form-data."""
    query = call.request.query_params
    model = call.model(query.get("model"))
    patches = _flag(query.get("patches"), "patches")
    want = Want.of(
        model.spec,
        pooling="patch" if patches else query.get("pooling"),
        dimensions=_number(query.get("dimensions"), "dimensions"),
        normalize=_flag(query.get("normalize"), "normalize"),
    )
    answer_type = _answer_type(call)
    vectors = await call.matrix(await _images(call), want)
    with call.timings.stage("encode"):
        response = _response(vectors, answer_type, model.name)
    response.headers["x-embedding-dim"] = str(vectors.shape[-1])
    response.headers["x-embedding-shape"] = ",".join(map(str, vectors.shape))
    return response


async def _images(call: Call) -> list[Payload]:
    body = await call.body()
    if not call.request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return [Raw(body)]
    with call.timings.stage("parse"):
        return [Raw(part) for part in await _parts(call.request.headers, body, call.service.config.limits.items)]


async def _parts(headers: Headers, body: bytes, most: int) -> list[bytes]:
    async def stream() -> Any:
        yield body

    parser = _FormParser(headers, stream(), max_files=most, max_fields=most)
    parser.spool_max_size = len(body) + 1  # the body is in memory already
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        if "Too many" in str(error):
            raise RequestError(
                413, "too_many_items", f"the request has more than the {most} parts allowed; send several requests"
            ) from error
        raise invalid("the body is not valid multipart/form-data", code="invalid_multipart") from error
    found = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    parser.close()
    if not parser.is_whole:
        raise invalid("the form is truncated: its last boundary is missing", code="invalid_multipart")
    if not found:
        raise invalid(
            "the form holds no file; send each image as a part named file, with a filename", code="empty_input"
        )
    return found


def _response(vectors: np.ndarray, answer_type: str, model: str) -> Response:
    if answer_type == FLOAT32:
        return Response(vectors.astype("<f4", copy=False).tobytes(), media_type=FLOAT32)
    if answer_type == NPY:
        file = io.BytesIO()
        np.save(file, vectors)
        return Response(file.getvalue(), media_type=NPY)
    told = {"model": model, "shape": list(vectors.shape), "embeddings": to_json(vectors, "float")}
    return JSONResponse(told)


def _answer_type(call: Call) -> str:
    """By Accept, of those that are known the one named first; JSON by default."""
    asked = [part.partition(";")[0].strip().lower() for part in call.request.headers.get("accept", "").split(",")]
    if found := next((name for name in asked if name in (JSON, NPY, FLOAT32)), None):
        return found
    if any(name in ("", "*/*", "application/*") for name in asked):
        return JSON
    raise RequestError(406, "not_acceptable", f"the answer can be {JSON}, {NPY} or {FLOAT32}", param="accept")


def _flag(text: str | None, name: str) -> bool | None:
    if text is not None and text.lower() not in TRUE:
        raise invalid(f"{name} is {text[:40]!r}; it must be true or false", param=name)
    return None if text is None else TRUE[text.lower()]


def _number(text: str | None, name: str) -> int | None:
    if text is not None and not (text.isdecimal() and len(text) < 10):
        raise invalid(f"{name} is {text[:40]!r}; it must be a number", param=name)
    return None if text is None else int(text)
