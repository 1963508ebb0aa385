"""Embeddings with what they are of: ids, paths, vectors, labels, and the encoder that they came from."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import ValidationError

from mcbeit.atomic import replacing, write_json
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import EncoderError


@dataclass(frozen=True)
class Embeddings:
    """Vectors with the names of their images. The vectors may be memory-mapped."""

    ids: list[str]
    paths: list[str]
    vectors: Float32[np.ndarray, "row dim"]  # rows of nan: images that cannot be read
    spec: EncoderSpec
    labels: Int64[np.ndarray, " row"] | None = None
    classes: list[str] | None = None


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write `NAME.npy` with the vectors, and `NAME.npy.json` beside it with everything else."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, embeddings.vectors)
    told = {
        "ids": embeddings.ids,
        "paths": embeddings.paths,
        "labels": None if embeddings.labels is None else embeddings.labels.tolist(),
        "classes": embeddings.classes,
        "spec": embeddings.spec.model_dump(mode="json"),
    }
    write_json(_beside(path), told)


def load_embeddings(path: str | Path) -> Embeddings:
    """Read what `save_embeddings` wrote; the vectors are memory-mapped. Raises EncoderError if it cannot be read."""
    path = Path(path).expanduser()
    try:
        told = json.loads(_beside(path).read_text(encoding="utf-8"))
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        spec = EncoderSpec.model_validate(told["spec"])
        if vectors.shape != (len(told["ids"]), spec.dim):
            raise ValueError(f"vectors of the shape {list(vectors.shape)} for {len(told['ids'])} ids, dim {spec.dim}")
        labels = None if told["labels"] is None else np.array(told["labels"], np.int64)
        return Embeddings(told["ids"], told["paths"], vectors, spec, labels, told["classes"])
    except FileNotFoundError as error:
        raise EncoderError(f"there are no embeddings at '{path}' (missing: '{error.filename}')") from error
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise EncoderError(f"'{path}' holds no embeddings that can be read: {error}") from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
