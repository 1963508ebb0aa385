"""The rows of embeddings that an index takes: those of images that could be read, of unit length, in pieces."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from mcbeit.embeddings import Embeddings
from mcbeit.encoder import unit_length
from mcbeit.errors import VectorIndexError
from mcbeit.index_items import Item

CHUNK = 8192  # vectors that are in memory at once while they pass through
SEED = 0  # of the vectors that codes are learned from

Vectors = Float32[np.ndarray, "vector dim"]


class IndexRows:
    """Vectors with what is known of them. Rows of nan, images that could not be read, are left out."""

    def __init__(
        self,
        embeddings: Embeddings,
        paths: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        self.embeddings = embeddings
        self.paths: Sequence[str | None] = embeddings.paths if paths is None else paths
        self.metadata: Sequence[Mapping[str, Any] | None] = (
            [None] * len(embeddings.ids) if metadata is None else metadata
        )
        if not len(embeddings.ids) == len(self.paths) == len(self.metadata):
            raise ValueError("paths and metadata need an entry per vector")
        starts = range(0, len(embeddings.ids), CHUNK)
        is_read = [~np.isnan(embeddings.vectors[start : start + CHUNK]).all(axis=1) for start in starts]
        self._rows = np.flatnonzero(np.concatenate(is_read)) if is_read else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_left_out(self) -> int:
        """Rows without a vector."""
        return len(self.embeddings.ids) - len(self)

    def items(self) -> Iterator[Item]:
        """What is known of each vector."""
        ids, labels, classes = self.embeddings.ids, self.embeddings.labels, self.embeddings.classes
        for row in self._rows.tolist():
            label = None if labels is None else int(labels[row])
            name = None if label is None else str(label) if classes is None else classes[label]
            yield Item(ids[row], self.paths[row], name, self.metadata[row])

    def chunks(self) -> Iterator[Vectors]:
        """All vectors. Raises VectorIndexError if one is not finite."""
        for start in range(0, len(self), CHUNK):
            rows = self._rows[start : start + CHUNK]
            chunk = np.asarray(self.embeddings.vectors[rows], np.float32)
            is_finite = np.isfinite(chunk).all(axis=1)
            if not is_finite.all():
                bad = self.embeddings.ids[int(rows[np.argmin(is_finite)])]
                raise VectorIndexError(f"the vector of '{bad}' holds numbers that are not finite; embed it again")
            yield unit_length(chunk)

    def sample(self, count: int) -> Vectors:
        """Some vectors, always the same ones."""
        chosen = np.sort(np.random.default_rng(SEED).permutation(len(self))[:count])
        return unit_length(np.asarray(self.embeddings.vectors[self._rows[chosen]], np.float32))
