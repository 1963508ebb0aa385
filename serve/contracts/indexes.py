"""`/v1/indexes`: images that were put in, found again by an image, a vector or an id."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse, Response

from mcbeit.serve.call import Call, parse_form
from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.indexes import Indexes
from mcbeit.serve.payload import Encoded
from mcbeit.serve.spelling import image_of
from mcbeit.serve.store_items import Question, Scalar, StoreFacts, StoreHit, StoreItem
from mcbeit.serve.vectors import Want

MAX_ITEMS = 10_000  # vectors of one request; images have a limit of their own
MAX_KEYS, MAX_VALUES = 32, 1000  # of a filter
Embedding = Annotated[list[float], Field(fail_fast=True)] | str  # numbers, or base64 of little-endian float32
Include = Literal["metadata", "embedding"]


def _few(told: Any) -> Any:
    """Raise ValueError for a filter that is far too large, before its parts are looked at."""
    if isinstance(told, dict) and len(told) > MAX_KEYS:
        raise ValueError(f"a filter has at most {MAX_KEYS} keys, found {len(told)}")
    return told


Values = Annotated[list[Scalar], Field(fail_fast=True, max_length=MAX_VALUES)]
Filters = Annotated[dict[str, Scalar | Values], BeforeValidator(_few)]


class IndexForm(BaseModel):
    """Names that are not here are refused: a filter that is not seen would find too much."""

    model_config = ConfigDict(extra="forbid")


class IndexRequest(IndexForm):
    """What an index is to hold. All of it may be left out."""

    model: str | None = Field(None, description="One of /v1/models; default: the first.")
    dim: int | None = Field(None, description="Checked against the model.")
    metric: Literal["cosine"] = "cosine"
    type: Literal["flat"] = "flat"


class Item(IndexForm):
    """One image, or one vector of the same model."""

    id: str
    image: Any = Field(None, description="In any spelling that /v1/embeddings takes.")
    embedding: Embedding | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_one(self) -> "Item":
        if (self.image is None) == (self.embedding is None):
            raise ValueError("give exactly one of image and embedding")
        return self


class ItemsRequest(IndexForm):
    """Items; a list of them by itself is taken too."""

    items: Annotated[list[Item], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    revision: str | None = Field(None, description="X-Model-Revision of the embeddings, to be sure that they fit.")

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, told: Any) -> Any:
        return {"items": told} if isinstance(told, list) else told


class DeleteRequest(IndexForm):
    """Which items are to go."""

    ids: Annotated[list[str], Field(fail_fast=True, max_length=MAX_ITEMS)]


class SearchRequest(IndexForm):
    """Exactly one of image, embedding and id; an item is not found by its own id."""

    image: Any = Field(None, description="In any spelling that /v1/embeddings takes.")
    embedding: Embedding | None = None
    id: str | None = Field(None, description="Of an item that is in the index.")
    k: int = Field(10, description="How many.")
    offset: int = Field(0, description="Leave out so many of the nearest: the pages before.")
    filter: Filters = Field({}, description="Keys of the metadata: a value, or one of several.")
    include: Annotated[list[Include], Field(fail_fast=True, max_length=2)] = ["metadata"]
    dedup: float | None = Field(None, description="Leave out what is more alike than this cosine to a better hit.")
    revision: str | None = Field(None, description="X-Model-Revision of the embedding, to be sure that it fits.")

    @model_validator(mode="after")
    def _has_one(self) -> "SearchRequest":
        if [self.image, self.embedding, self.id].count(None) != 2:
            raise ValueError("give exactly one of image, embedding and id")
        return self


async def every(call: Call) -> Response:
    """`GET /v1/indexes`: all there are."""
    return JSONResponse({"object": "list", "data": [_described(one) for one in await _indexes(call).all_facts()]})


async def one(call: Call) -> Response:
    """`GET /v1/indexes/{name}`: what it holds."""
    return JSONResponse(_described(await _facts(call)))


async def create(call: Call) -> Response:
    """`PUT /v1/indexes/{name}`: make it, unless it is there already."""
    indexes, name = _indexes(call), _name(call)
    body = await call.body()
    form = parse_form(IndexRequest, body) if body.strip() else IndexRequest()
    spec = call.model(form.model).spec
    if form.dim not in (None, spec.dim):
        raise invalid(f"dim is {form.dim}; the vectors of this model have {spec.dim} numbers", param="dim")
    is_new = await indexes.create(name, spec)
    return JSONResponse(_described(await indexes.facts(name)), 201 if is_new else 200)


async def drop(call: Call) -> Response:
    """`DELETE /v1/indexes/{name}`: delete it with everything in it."""
    await _indexes(call).drop(_name(call))
    return JSONResponse({"name": _name(call), "deleted": True})


async def upsert(call: Call) -> Response:
    """`POST /v1/indexes/{name}/items`: add items or replace them by id, all or none; on disk when it answers."""
    facts = await _facts(call)
    form = await call.form(ItemsRequest)
    _check_revision(form.revision, facts)
    pictures = [index for index, item in enumerate(form.items) if item.image is not None]
    found = await _embedded(
        call, facts, [form.items[index].image for index in pictures], [f"items[{index}].image" for index in pictures]
    )
    vectors = dict(zip(pictures, found, strict=True))
    items = [
        StoreItem(item.id, _vector(item.embedding, f"items[{index}].embedding") if item.embedding is not None
                  else vectors[index], item.metadata)
        for index, item in enumerate(form.items)
    ]  # fmt: skip
    with call.timings.stage("store"):
        added = await _indexes(call).upsert(facts.name, items, facts.spec.fingerprint)
    return JSONResponse({"index": facts.name, "count": len(items), "added": added})


async def page(call: Call) -> Response:
    """`GET /v1/indexes/{name}/items`: all items, page by page, in the order in which they came."""
    query = call.request.query_params
    limit = query.get("limit", "100")
    if not (limit.isdecimal() and len(limit) < 10):
        raise invalid(f"limit is {limit[:40]!r}; it must be a number", param="limit")
    items, after = await _indexes(call).page(_name(call), query.get("after"), int(limit))
    include = _included(query.get("include", "metadata").split(","))
    return JSONResponse({"object": "list", "data": [_item(item, include) for item in items], "after": after})


async def get(call: Call) -> Response:
    """`GET /v1/indexes/{name}/items/{id}`: one item, with its vector."""
    item = await _indexes(call).get(_name(call), call.request.path_params["id"])
    return JSONResponse(_item(item, ("metadata", "embedding")))


async def delete(call: Call) -> Response:
    """`DELETE /v1/indexes/{name}/items`: delete items; gone for good when it answers."""
    form = await call.form(DeleteRequest)
    return JSONResponse({"index": _name(call), "deleted": await _indexes(call).delete(_name(call), form.ids)})


async def delete_one(call: Call) -> Response:
    """`DELETE /v1/indexes/{name}/items/{id}`: delete one item."""
    deleted = await _indexes(call).delete(_name(call), [call.request.path_params["id"]])
    return JSONResponse({"index": _name(call), "deleted": deleted})


async def search(call: Call) -> Response:
    """`POST /v1/indexes/{name}/search`: the nearest items, the nearest first."""
    facts = await _facts(call)
    form = await call.form(SearchRequest)
    _check_revision(form.revision, facts)
    vector: np.ndarray | None = None
    if form.image is not None:
        (vector,) = await _embedded(call, facts, [form.image], ["image"])
    elif form.embedding is not None:
        vector = _vector(form.embedding, "embedding")
    question = Question(
        vector, form.id, form.k, form.offset, form.filter, form.dedup, with_vectors="embedding" in form.include
    )
    with call.timings.stage("search"):
        hits = await _indexes(call).search(facts.name, question, facts.spec.fingerprint)
    return JSONResponse({
        "object": "list", "index": facts.name, "model": facts.spec.name,
        "data": [_hit(hit, form.include) for hit in hits],
        "next_offset": form.offset + form.k if len(hits) == form.k else None,
    })  # fmt: skip


def _indexes(call: Call) -> Indexes:
    indexes = call.service.indexes
    if indexes is None:
        raise RequestError(
            404, "indexes_disabled", "indices are switched off here; start the service with indexes=FOLDER"
        )
    return indexes


def _name(call: Call) -> str:
    return str(call.request.path_params["name"])


async def _facts(call: Call) -> StoreFacts:
    return await _indexes(call).facts(_name(call))


async def _embedded(
    call: Call, facts: StoreFacts, images: Sequence[Any], places: Sequence[str]
) -> Sequence[np.ndarray]:
    """By the model that the index was made for. Raises RequestError (409) if it is not served any more."""
    if not images:
        return []
    models = call.service.models.values()
    name = next((model.name for model in models if model.revision == facts.spec.fingerprint), None)
    if name is None:
        raise RequestError(
            409, "wrong_model", f"the index '{facts.name}' holds vectors of '{facts.spec.name}' (revision "
            f"{facts.spec.fingerprint[:12]}), which is not served here now; serve it, or make a new index and add the "
            "images again",
        )  # fmt: skip
    call.model(name)
    payloads = map(image_of, images, places)  # one by one: who asks knows how many are allowed
    return list(await call.matrix(payloads, Want(), places=places))


def _check_revision(told: str | None, facts: StoreFacts) -> None:
    if told not in (None, facts.spec.fingerprint):
        raise RequestError(
            409, "wrong_model", f"the index '{facts.name}' is of revision {facts.spec.fingerprint}; vectors of another "
            "cannot be compared with its own", param="revision",
        )  # fmt: skip


def _vector(told: list[float] | str, where: str) -> np.ndarray:
    if isinstance(told, list):
        return np.array(told, np.float64).astype(np.float32)
    try:
        data = Encoded(told).read(len(told))
    except RequestError as error:
        raise error.at(where) from error
    if len(data) % 4:
        raise invalid(f"{where}: {len(data)} bytes are no float32 numbers", param=where)
    return np.frombuffer(data, "<f4")


def _included(told: Sequence[str]) -> Sequence[str]:
    if others := [name for name in told if name not in ("metadata", "embedding", "")]:
        raise invalid(f"include: {others[0][:40]!r}; allowed: metadata, embedding", param="include")
    return told


def _described(facts: StoreFacts) -> dict[str, Any]:
    spec = facts.spec
    return {"name": facts.name, "object": "index", "count": facts.num_items, "dim": spec.dim, "metric": "cosine",
            "type": "flat", "model": spec.name, "revision": spec.fingerprint}  # fmt: skip


def _item(item: StoreItem, include: Sequence[str]) -> dict[str, Any]:
    told = {"metadata": item.metadata, "embedding": item.vector.tolist() if "embedding" in include else None}
    return {"id": item.id, **{name: told[name] for name in told if name in include}}


def _hit(hit: StoreHit, include: Sequence[str]) -> dict[str, Any]:
    told = {"metadata": hit.metadata, "embedding": None if hit.vector is None else hit.vector.tolist()}
    return {"id": hit.id, "score": round(hit.score, 6), **{name: told[name] for name in told if name in include}}
