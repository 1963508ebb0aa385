"""`/demo`: a page to try the service with, and the few files that it is made of. Nothing of it comes from elsewhere."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from starlette.responses import RedirectResponse, Response

from mcbeit.serve.call import Call
from mcbeit.serve.errors import RequestError

INDEX = "index.html"
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PART_KINDS = ("text/javascript", "text/css", "image/svg+xml")
SHOWN = (  # nothing else is given, whatever lies in the folder
    INDEX, "icon.svg", "page.css", "controls.css", "bench.css", "page.js", "algebra.js", "colours.js", "crop.js",
    "dom.js", "gallery.js", "lens.js", "neighbours.js", "paint.js", "request.js", "samples.js", "service.js",
    "tiles.js",
)  # fmt: skip
POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:", "connect-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked after each time: its parts are always of one version
}


class PageFile(NamedTuple):
    """One file, as it is sent."""

    content: bytes
    kind: str  # media type
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Every file of the page by name; they are read once."""
    folder = files("mcbeit.serve") / "page"
    return {name: _page_file(name, (folder / name).read_bytes()) for name in SHOWN}


async def start(call: Call) -> Response:
    """`GET /`: on to the page."""
    return RedirectResponse("demo")  # relative, as a proxy may have put the service below a path


async def index(call: Call) -> Response:
    """`GET /demo`: a page to try the service with."""
    return _answer(call, page_files()[INDEX])


async def part(call: Call) -> Response:
    """`GET /demo/{file}`: a file that the page is made of."""
    found = page_files().get(call.request.path_params["file"])
    if found is None:
        raise RequestError(404, "not_found", "there is no such file of the page here; see /demo")
    return _answer(call, found)


def _page_file(name: str, content: bytes) -> PageFile:
    return PageFile(content, KINDS[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _answer(call: Call, file: PageFile) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if _is_known(call.request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)


def _is_known(told: str, etag: str) -> bool:
    """Whether the browser has it already; a proxy that compresses marks the tag as weak."""
    tags = [tag.strip().removeprefix("W/") for tag in told.split(",")]
    return etag in tags or "*" in tags
