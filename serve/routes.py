"""Routes as every contract declares them, and what `/docs` says of each."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel

from mcbeit.serve.endpoint import JOINT, Family, Handle, endpoint

REFERENCE = "#/components/schemas/{model}"
NAMES = re.compile(r"{(\w+)(?::path)?}")  # in a path; with :path it may hold slashes
BINARY = {"schema": {"type": "string", "format": "binary"}}


class Route(NamedTuple):
    """One path, or several that mean the same, and what is known of it."""

    method: str
    paths: tuple[str, ...]
    handle: Handle
    tag: str
    errors: Family = JOINT
    public: bool = False  # no key is asked for
    works: bool = True  # it gives the models work, so it is refused while there is too much
    form: type[BaseModel] | None = None  # the body, as JSON
    example: Any = None  # of the body
    bodies: Mapping[str, Any] = {}  # further kinds of body: media type -> OpenAPI's description
    query: tuple[tuple[str, str, str], ...] = ()  # name, JSON type, description
    answer: Any = None  # an example of it
    answers: tuple[str, ...] = ("application/json",)  # media types


def add_routes(app: FastAPI, routes: Iterable[Route]) -> None:
    """Let an application answer them."""
    for route in routes:
        answer = endpoint(route.handle, route.errors, public=route.public, works=route.works)
        for index, path in enumerate(route.paths):
            app.add_api_route(
                path, answer, methods=[route.method], name=route.handle.__name__, tags=[route.tag],
                operation_id=f"{route.tag}_{route.handle.__name__}", include_in_schema=index == 0,
                summary=_summary(route), description=_description(route), responses=_responses(route),
                openapi_extra=_extra(route), response_model=None,
            )  # fmt: skip


def schemas(routes: Iterable[Route]) -> dict[str, Any]:
    """The bodies of all routes by name, and what they are made of."""
    found: dict[str, Any] = {}
    for form in [route.form for route in routes if route.form is not None]:
        schema = form.model_json_schema(ref_template=REFERENCE)
        found |= {**schema.pop("$defs", {}), form.__name__: schema}
    return found


def _summary(route: Route) -> str:
    """The docstring of the handler, without the path that it begins with."""
    told = (route.handle.__doc__ or "").strip().removesuffix(".")
    return told.partition("`: ")[2] or told


def _description(route: Route) -> str:
    return f"Also at {', '.join(route.paths[1:])}." if len(route.paths) > 1 else ""


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    content = {kind: ({"example": route.answer} if kind == "application/json" and route.answer else {})
               for kind in route.answers}  # fmt: skip
    refused = "A refusal: 400, 401, 404, 408, 413, 415, 422, 429 or 503, in the shape of this family of clients."
    return {200: {"description": "The answer.", "content": content}, "4XX": {"description": refused}}


def _extra(route: Route) -> dict[str, Any]:
    extra: dict[str, Any] = {} if route.public else {"security": [{"key": []}]}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in NAMES.findall(route.paths[0])
    ] + [
        {"name": name, "in": "query", "required": False, "schema": {"type": kind}, "description": told}
        for name, kind, told in route.query
    ]
    extra |= {"parameters": parameters} if parameters else {}
    content = dict(route.bodies)
    if route.form is not None:
        content["application/json"] = {"schema": {"$ref": REFERENCE.format(model=route.form.__name__)},
                                       "example": route.example}  # fmt: skip
    if content:
        extra["requestBody"] = {"required": True, "content": content}
    return extra
