"""What a client of the service sends, and what it makes of answers: no connection here, so it is the same for all."""

import io
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mcbeit.encoder import ImageInput
from mcbeit.errors import ServiceError
from mcbeit.image_files import to_rgb
from mcbeit.model_folder import EMBEDDING, PATCH_TOKENS

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.25, 30.0
NO_ROUTES_YET = "Path '"  # what Ray Serve's 404 begins with while it does not know its routes
LENGTH = "inference-header-content-length"
PART_BYTES = 200  # of a part of a form, beside the file


class Options(NamedTuple):
    """What is asked for of every image."""

    model: str | None = None
    patches: bool = False
    dimensions: int | None = None
    normalize: bool | None = None

    def query(self) -> dict[str, str]:
        """As the query of /v1/embed."""
        told = {"model": self.model, "dimensions": self.dimensions, "normalize": self.normalize}
        found = {name: str(value).lower() if name != "model" else str(value)
                 for name, value in told.items() if value is not None}  # fmt: skip
        return {**found, "patches": "true"} if self.patches else found


class Batch(NamedTuple):
    """Images of one request; `start` is the place of the first among all."""

    start: int
    names: list[str]
    files: list[bytes]

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two requests instead of one."""
        middle = len(self.files) // 2
        return (
            Batch(self.start, self.names[:middle], self.files[:middle]),
            Batch(self.start + middle, self.names[middle:], self.files[middle:]),
        )


def batches(images: Iterable[ImageInput], max_items: int, max_bytes: int) -> Iterator[Batch]:
    """Requests that are within both limits; a single image that is not goes alone, and the service will say so."""
    batch, size = Batch(0, [], []), 0
    for index, image in enumerate(images):
        name, data = file_of(image, index)
        if batch.files and (len(batch.files) == max_items or size + len(data) + PART_BYTES > max_bytes):
            yield batch
            batch, size = Batch(index, [], []), 0
        batch.names.append(name)
        batch.files.append(data)
        size += len(data) + PART_BYTES
    if batch.files:
        yield batch


def file_of(image: ImageInput, index: int) -> tuple[str, bytes]:
    """How an image is called, and its file; pictures and arrays become PNG. Raises ServiceError for no such file."""
    if isinstance(image, bytes):
        return f"image {index}", image
    if isinstance(image, str | Path):
        try:
            return str(image), Path(image).read_bytes()
        except OSError as error:
            raise ServiceError(f"{image}: cannot be read: {error.strerror}") from error
    file = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    to_rgb(picture).save(file, "PNG", compress_level=1)  # upright: a PNG would lose how it is to be turned
    return f"image {index}", file.getvalue()


def embed_request(batch: Batch, options: Options) -> dict[str, Any]:
    """The keywords of httpx for /v1/embed."""
    request: dict[str, Any] = {
        "method": "POST",
        "url": "/v1/embed",
        "params": options.query(),
        "headers": {"accept": "application/x-npy"},
    }
    if len(batch.files) == 1:
        return {**request, "content": batch.files[0]}
    return {**request, "files": [("file", (str(index), data)) for index, data in enumerate(batch.files)]}


def pixels_request(pixels: np.ndarray, name: str, *, patches: bool) -> dict[str, Any]:
    """The keywords of httpx for pixels that are resized and cropped already, by KServe's protocol."""
    head = {
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape),
                    "parameters": {"binary_data_size": pixels.nbytes}}],
        "outputs": [{"name": PATCH_TOKENS if patches else EMBEDDING, "parameters": {"binary_data": True}}],
        "parameters": {"normalize": False},
    }  # fmt: skip
    text = json.dumps(head).encode()
    content = text + np.ascontiguousarray(pixels).tobytes()
    headers = {LENGTH: str(len(text)), "content-type": "application/octet-stream"}
    return {"method": "POST", "url": f"/v2/models/{name}/infer", "content": content, "headers": headers}


def read_npy(content: bytes) -> np.ndarray:
    """The array of an answer."""
    found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def read_output(content: bytes, headers: Mapping[str, str]) -> np.ndarray:
    """The one output of an answer of KServe's protocol."""
    length = int(headers[LENGTH])
    (output,) = json.loads(content[:length])["outputs"]
    return np.frombuffer(content[length:], "<f4").reshape(output["shape"])


def retry_delay(status: int | None, headers: Mapping[str, str], text: str, attempt: int) -> float | None:
    """Seconds to wait before the same request is sent again; None: that will not help."""
    is_starting = status == 404 and text.startswith(NO_ROUTES_YET)
    if status is not None and ((not is_starting and status not in RETRIED) or headers.get("x-should-retry") == "false"):
        return None
    told = headers.get("retry-after-ms"), headers.get("retry-after")
    for value, unit in zip(told, (1e-3, 1.0), strict=True):
        if value is not None and value.replace(".", "", 1).isdecimal():
            return min(float(value) * unit, LONGEST_DELAY_SECONDS) + random.uniform(0, FIRST_DELAY_SECONDS)
    return min(FIRST_DELAY_SECONDS * 2**attempt, LONGEST_DELAY_SECONDS) * random.uniform(0.5, 1)


def refusal(status: int, text: str, batch: Batch | None) -> ServiceError:
    """What an answer that is no success says, with the image that it speaks of by its own name."""
    message, code, param = text[:300], "", ""
    try:
        told = json.loads(text)["error"]
        message, code, param = (told, "", "") if isinstance(told, str) else (
            str(told["message"]), str(told["code"]), str(told["param"]))  # fmt: skip
    except (ValueError, KeyError, TypeError):
        pass
    place = param.removeprefix("input[").removesuffix("]")
    if batch is not None and place.isdecimal() and int(place) < len(batch.names):
        message = f"{batch.names[int(place)]}: {message.removeprefix(f'{param}: ')}"
    return ServiceError(f"the service refuses ({status}): {message}", status, code)
