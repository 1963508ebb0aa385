"""The vectors of an index in memory, searched exactly by faiss. The only file of the service that imports faiss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from mcbeit.errors import VectorIndexError

COMPACT_SHARE, COMPACT_LEAST = 0.1, 1000  # of removed rows, from which on they are really taken out

Vectors = Float32[np.ndarray, "vector dim"]
Rows = Int64[np.ndarray, " row"]


class StoreVectors:
    """Vectors of unit length by row number. Not for several threads at once: the store has a lock.

    Removed rows stay until they are many: taking one out moves all behind it.
    """

    def __init__(self, dim: int) -> None:
        self._faiss = _import_faiss()
        self.dim = dim
        self._index = self._empty()
        self._removed: set[int] = set()

    def __len__(self) -> int:
        return int(self._index.ntotal) - len(self._removed)

    def add(self, rows: Sequence[int], vectors: Vectors) -> None:
        """Rows that were never there before."""
        self._index.add_with_ids(np.ascontiguousarray(vectors), np.array(rows, np.int64))

    def remove(self, rows: Sequence[int]) -> None:
        """Rows that are there."""
        self._removed.update(rows)
        if len(self._removed) > max(COMPACT_LEAST, COMPACT_SHARE * int(self._index.ntotal)):
            self._index.remove_ids(np.array(sorted(self._removed), np.int64))
            self._removed.clear()

    def vectors(self, rows: Sequence[int]) -> Vectors:
        """Of rows that are there."""
        found = [self._index.reconstruct(row) for row in rows]
        return np.stack(found) if found else np.zeros((0, self.dim), np.float32)

    def search(self, query: Float32[np.ndarray, " dim"], k: int, among: Rows | None = None) -> list[tuple[int, float]]:
        """The nearest rows with their cosines, the nearest first; `among` some rows only."""
        selector = self._selector(among)
        parameters = None if selector is None else self._faiss.SearchParameters(sel=selector)
        scores, rows = self._index.search(query[None], k, params=parameters)
        return [(row, score) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True) if row >= 0]

    def _selector(self, among: Rows | None) -> Any:
        if among is not None:
            return self._faiss.IDSelectorBatch(np.setdiff1d(among, np.array(sorted(self._removed), np.int64)))
        if self._removed:
            return self._faiss.IDSelectorNot(self._faiss.IDSelectorBatch(np.array(sorted(self._removed), np.int64)))
        return None

    def _empty(self) -> Any:
        return self._faiss.IndexIDMap2(self._faiss.IndexFlatIP(self.dim))


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise VectorIndexError("an index needs faiss: pip install 'mcbeit[cpu]'") from error
    return faiss
