"""From the numbers of a model to what a request asked for: length, dimensions, and how they are written."""

import base64
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import EncoderSpec, unit_length
from mcbeit.serve.errors import invalid

Encoding = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
PATCHES = ("patch", "patches", "all")  # names of a pooling that does not pool


class Want(NamedTuple):
    """What is asked for of each image."""

    patches: bool = False  # a vector per patch instead of one per image
    dimensions: int | None = None  # the first so many numbers; default: all
    normalize: bool | None = None  # to unit length; default: as the model says

    @classmethod
    def of(
        cls, spec: EncoderSpec, *, pooling: str | None = None, dimensions: int | None = None,
        normalize: bool | None = None
    ) -> "Want":  # fmt: skip
        """Checked against a model. Raises RequestError for what it cannot give."""
        patches = pooling in PATCHES
        if pooling is not None and not patches and pooling != spec.pooling:
            raise invalid(
                f"pooling {pooling[:40]!r} is not in this model, which was exported with {spec.pooling!r}; allowed: "
                f"{spec.pooling}, patch; export it again to change that",
                param="pooling",
            )
        most = spec.patch_dim if patches else spec.dim
        if dimensions is not None and not 1 <= dimensions <= most:
            raise invalid(f"dimensions is {dimensions}; this model has 1 to {most}", param="dimensions")
        return cls(patches, dimensions, normalize)


def finish(
    numbers: Float32[np.ndarray, "*shape dim"], want: Want, spec: EncoderSpec
) -> Float32[np.ndarray, "*shape d"]:
    """Cut, then scaled to unit length: the other way round, cut vectors would be shorter than 1.

    Patch features are scaled only where a request says so.
    """
    cut = numbers if want.dimensions is None else numbers[..., : want.dimensions]
    default = spec.normalize and not want.patches
    scaled = unit_length(cut) if (default if want.normalize is None else want.normalize) else cut
    return np.ascontiguousarray(scaled, np.float32)


def to_json(vector: Float32[np.ndarray, "*shape dim"], encoding: Encoding) -> Any:
    """One vector, or the vectors of all patches, as JSON says it.

    base64 is of little-endian float32, row by row. int8 and uint8 are for vectors of unit length: 127 times the number,
    rounded, and 128 more. ubinary has a bit per number, 1 if it is not negative, the first the highest of its byte;
    binary is that minus 128. (Cohere's and Jina's definitions of the last two.)
    """
    if encoding == "float":
        return vector.tolist()
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
    if encoding in ("int8", "uint8"):
        scaled = np.clip(np.rint(vector * 127), -127, 127).astype(np.int16)
        return (scaled + 128 if encoding == "uint8" else scaled).tolist()
    packed = np.packbits(vector >= 0, axis=-1).astype(np.int16)
    return (packed if encoding == "ubinary" else packed - 128).tolist()
