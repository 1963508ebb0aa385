"""Embeddings with what they are of: ids, vectors, labels, and the encoder that they came from."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from pydantic import ValidationError

from mcbeit.atomic import replacing, write_json
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import EncoderError


@dataclass(frozen=True)
class Embeddings:
    """A vector per id. The vectors may be memory-mapped."""

    ids: list[str]
    vectors: Float32[np.ndarray, "item dim"]
    spec: EncoderSpec
    labels: list[str] | None = None


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write `NAME.npy` with the vectors, and `NAME.json` beside it with everything else."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, embeddings.vectors)
    told = {"ids": embeddings.ids, "labels": embeddings.labels, "spec": embeddings.spec.model_dump(mode="json")}
    write_json(path.with_suffix(".json"), told)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read what `save_embeddings` wrote; the vectors are memory-mapped. Raises EncoderError if it cannot be read."""
    path = Path(path).expanduser()
    try:
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        found = Embeddings(told["ids"], vectors, EncoderSpec.model_validate(told["spec"]), told["labels"])
    except FileNotFoundError as error:
        raise EncoderError(f"there are no embeddings at '{path}' (missing: '{error.filename}')") from error
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise EncoderError(f"'{path}' holds no embeddings that can be read: {error}") from error
    if len(found.ids) != len(vectors) or found.vectors.shape[1:] != (found.spec.dim,):
        raise EncoderError(f"'{path}' has vectors of the shape {list(vectors.shape)} for {len(found.ids)} ids")
    return found
