"""The ASGI application: every contract over one service. Building it does no work; running it loads the models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from mcbeit import __version__
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.contracts.routes import ROUTES
from mcbeit.serve.endpoint import refusal
from mcbeit.serve.errors import RequestError
from mcbeit.serve.routes import add_routes, schemas
from mcbeit.serve.service import Service

TITLE = "mcbeit"
ABOUT = """
Images in, vectors out. The same vectors over the API that a client knows already: OpenAI, KServe v2, Weaviate,
text-embeddings-inference, Cohere, Voyage and Jina; and a fast one of its own.

Errors are 4xx for what the request has to change, 429 and 503 with `Retry-After` for what will pass. Every answer has
`X-Request-Id`, `X-Model-Revision` and `Server-Timing`.
"""
EXPOSED = ("x-request-id", "x-model-revision", "x-embedding-dim", "x-embedding-shape", "server-timing", "retry-after")


def build_app(config: ServeConfig, service: Service | None = None) -> FastAPI:
    """The application of a config, or of a service that is open already (it is then not loaded twice)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service or Service(config)
        async with app.state.service.running():
            yield

    app = FastAPIOffline(
        redoc_url=None, title=TITLE, version=__version__, description=ABOUT, lifespan=lifespan,
        redirect_slashes=False,
    )  # fmt: skip
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors_origins), allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id"], expose_headers=EXPOSED,
        )  # fmt: skip
    add_routes(app, ROUTES)
    app.add_exception_handler(HTTPException, _no_route)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]
    return app


def openapi(app: FastAPI) -> dict[str, Any]:
    """What `/docs` shows."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        components = schema.setdefault("components", {})
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        components.setdefault("schemas", {}).update(schemas(ROUTES))
        app.openapi_schema = schema
    return app.openapi_schema


async def _no_route(request: Request, error: Exception) -> Response:
    """A path or a method that is not there; the texts of Starlette are not repeated."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        return refusal(RequestError(405, "method_not_allowed", f"this path does not take {request.method}; see /docs"))
    return refusal(RequestError(404, "not_found", "there is no such path here; see /docs"))
