"""Whitening: the linear map after which the embeddings of some images have no preferred direction.

PCA whitening, as retrieval uses it (Jegou and Chum, ECCV 2012): subtract the mean, turn to the principal axes, divide
by the deviation along each. The axes of the least deviation may be left out, which makes vectors shorter.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mcbeit.atomic import write_bytes
from mcbeit.errors import EncoderError

EPSILON = 1e-6  # of the largest variance: what an axis has at least
NO_VARIANCE = 1e-12  # of the squared length of the mean: what rounding makes of none


@dataclass(frozen=True)
class Whitening:
    """`(embedding - mean) @ matrix`; learned from embeddings before any scaling to unit length."""

    mean: Float32[np.ndarray, " dim"]
    matrix: Float32[np.ndarray, "dim out"]
    fingerprint: str  # of the encoder that the embeddings came from

    @property
    def sha256(self) -> str:
        """What it is, as encoders record it."""
        return hashlib.sha256(self.mean.tobytes() + self.matrix.tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        tensors = {"mean": self.mean, "matrix": self.matrix}
        write_bytes(path, save(tensors, metadata={"kind": "mcbeit-whitening", "fingerprint": self.fingerprint}))


def load_whitening(path: str | Path, *, fingerprint: str) -> Whitening:
    """Read what `Whitening.save` wrote. Raises EncoderError if it is no such file, or of another encoder."""
    try:
        with safe_open(Path(path).expanduser(), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "mcbeit-whitening":
                raise EncoderError(f"'{path}' holds no whitening; make one: mcbeit whiten MODEL SOURCE -o {path}")
            found = Whitening(file.get_tensor("mean"), file.get_tensor("matrix"), metadata["fingerprint"])
    except FileNotFoundError as error:
        raise EncoderError(
            f"there is no whitening at '{path}'; make one: mcbeit whiten MODEL SOURCE -o {path}"
        ) from error
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"the whitening '{path}' cannot be read: {error}") from error
    if found.fingerprint != fingerprint:
        raise EncoderError(
            f"the whitening '{path}' was learned from another model, or from other tokens of it (its fingerprint is "
            f"{found.fingerprint[:12]}, this encoder's {fingerprint[:12]}); learn it anew with the same options"
        )
    return found


class Moments:
    """Mean and covariance of vectors that come in batches, in float64."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.sum: Float64[np.ndarray, " dim"] = np.zeros(dim)
        self.squares: Float64[np.ndarray, "dim dim"] = np.zeros((dim, dim))

    def add(self, vectors: Float32[np.ndarray, "batch dim"]) -> None:
        """Count a batch."""
        values = vectors.astype(np.float64)
        self.count += len(values)
        self.sum += values.sum(axis=0)
        self.squares += values.T @ values

    def whitening(self, *, fingerprint: str, dim: int | None = None) -> Whitening:
        """The whitening of what was counted, to `dim` axes. Raises EncoderError if that is too few vectors for them."""
        dim = check_enough(self.count, dim=dim, width=len(self.sum))
        mean = self.sum / self.count
        covariance = self.squares / self.count - np.outer(mean, mean)
        variances, axes = np.linalg.eigh(covariance)  # ascending
        variances, axes = variances[::-1][:dim], axes[:, ::-1][:, :dim]
        if variances[0] <= NO_VARIANCE * (mean @ mean):
            raise EncoderError(f"the embeddings of {self.count} images are all the same; are the images?")
        axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(dim)] < 0, -1, 1)  # the sign is free
        matrix = axes / np.sqrt(np.maximum(variances, EPSILON * variances[0]))
        return Whitening(mean.astype(np.float32), np.ascontiguousarray(matrix, np.float32), fingerprint)


def check_enough(count: int, *, dim: int | None, width: int) -> int:
    """The number of axes, all by default. Raises EncoderError if there are not so many, or too few vectors for them."""
    dim = dim or width
    if dim > width:
        raise EncoderError(f"--dim {dim} is more than the {width} numbers of an embedding")
    if count <= dim:
        raise EncoderError(
            f"{count} images are too few to whiten {dim} dimensions; take several times more images than dimensions, "
            "or fewer dimensions (--dim)"
        )
    return dim
