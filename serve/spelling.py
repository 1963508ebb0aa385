"""The ways in which clients write an image in JSON."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mcbeit.serve.errors import RequestError, invalid
from mcbeit.serve.payload import Encoded, Link, Payload, from_text

BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
SHORTEST = 32  # characters: no image is shorter, so it is a word
LOOKED_AT = 4096  # characters that tell base64 from text
KNOWN = 'a data URI, base64, an http(s) address, {"image": ...} or {"type": "image_url", ...}'


def image_of(item: Any, where: str) -> Payload:
    """The image that an item of a request is. Raises RequestError that says where."""
    try:
        return _image(item)
    except RequestError as error:
        raise error.at(where) from error


def images_of(items: Iterable[Any], name: str) -> Iterator[Payload]:
    """The images that the items of a list are, one by one: who asks knows how many are allowed. Raises RequestError."""
    return (image_of(item, f"{name}[{index}]") for index, item in enumerate(items))


def images_of_messages(messages: Sequence[Any]) -> Iterator[Payload]:
    """The images in the content of chat messages, as vLLM takes them. Raises RequestError."""
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list):
            raise _no_image(f"{where}.content must be a list of images").at(where)
        yield from images_of(content, f"{where}.content")


def _image(item: Any) -> Payload:
    if isinstance(item, str):
        return _of_text(item)
    if not isinstance(item, Mapping):
        raise _no_image(f"an image is {KNOWN}")
    if isinstance(inner := item.get("image_url"), Mapping):  # {"type": "image_url", "image_url": {"url": ...}}
        inner = inner.get("url")
    for key in ("image", "url", "bytes", "image_base64", "data"):
        inner = item.get(key) if inner is None else inner
    if not isinstance(inner, str):
        raise _no_image("this item holds no image; this is an image-only model")
    return _of_text(inner) if "bytes" not in item else Encoded(inner)


def _of_text(text: str) -> Payload:
    found = from_text(text)
    if isinstance(found, Link) or text[:5].lower() == "data:" or _looks_encoded(text):
        return found
    raise _no_image("this is text; this is an image-only model, which takes data URIs, base64 or addresses")


def _looks_encoded(text: str) -> bool:
    return len(text) >= SHORTEST and BASE64.fullmatch(text[:LOOKED_AT]) is not None


def _no_image(message: str) -> RequestError:
    return invalid(message, code="modality_not_supported")
