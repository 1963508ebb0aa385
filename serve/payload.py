"""One image of a request, as it came: bytes, base64 text, pixels, or an address."""

import base64
import binascii
from typing import NamedTuple

import numpy as np

from mcbeit.serve.errors import invalid, too_large

DATA_URI = "data:"
ADDRESS = ("http://", "https://")


class Raw(NamedTuple):
    """The file itself."""

    data: bytes

    def read(self, max_bytes: int) -> bytes:
        """The bytes. Raises RequestError if they are too many."""
        if len(self.data) > max_bytes:
            raise too_large(f"the image has {len(self.data)} bytes, more than the {max_bytes} allowed")
        return self.data


class Encoded(NamedTuple):
    """Base64, as it stands in JSON."""

    text: str

    def read(self, max_bytes: int) -> bytes:
        """The bytes. Raises RequestError if they are too many, or if the text is not strict base64."""
        if len(self.text) // 4 * 3 > max_bytes + 2:
            raise too_large(f"the image has {len(self.text) // 4 * 3} bytes, more than the {max_bytes} allowed")
        try:
            data = base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid("this is not valid base64", code="invalid_base64") from error
        return Raw(data).read(max_bytes)


class Decoded(NamedTuple):
    """The pixels that the model takes: uint8, resized and cropped."""

    pixels: np.ndarray


class Link(NamedTuple):
    """The address of an image."""

    url: str


Payload = Raw | Encoded | Decoded | Link


def from_text(text: str) -> Payload:
    """A data URI, an address, or bare base64."""
    if text[:5].lower() == DATA_URI:
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise invalid("a data URI must be of the form data:image/jpeg;base64,...", code="invalid_data_uri")
        return Encoded(body)
    if text[:8].lower().startswith(ADDRESS):
        return Link(text)
    return Encoded(text)
