"""The kinds of index: which one for how many vectors, and with which numbers."""

from typing import Literal

from pydantic import Field

from mcbeit.config import Config
from mcbeit.errors import VectorIndexError

IndexKind = Literal["flat", "hnsw", "ivfpq"]

MAX_FLAT = 50_000  # above it, a graph is faster; docs/index.md has the measurements
MAX_HNSW = 200_000  # above it, linking the graph takes too long, and whole vectors too much memory
POINTS_PER_CENTROID = 39  # what faiss asks for, to learn a centroid from
CODES = 256  # a byte per part of a vector
MIN_IVFPQ = POINTS_PER_CENTROID * CODES
POINTS_PER_CODE = 64  # to learn codes from; faiss would take four times as many, and as long
MIN_CODE_BYTES = 8  # of short vectors, which are cheap anyway
DIMS_PER_BYTE = 8  # of a vector's code


class IndexConfig(Config):
    """How an index is built and asked. What belongs to another kind is not used."""

    kind: Literal["auto"] | IndexKind = "auto"  # auto: by the number of vectors
    links: int = Field(32, ge=2, le=256)  # hnsw: neighbours that a vector is linked to, twice as many at the bottom
    build_width: int = Field(200, ge=1)  # hnsw: candidates that are kept while linking
    search_width: int = Field(128, ge=1)  # hnsw: candidates that are kept while searching
    lists: int | None = Field(None, ge=1)  # ivfpq: cells of the space; default: 4 x the root of the count
    code_bytes: int | None = Field(None, ge=1)  # ivfpq: of a vector, a divisor of its dim; default: about dim / 8
    probes: int | None = Field(None, ge=1)  # ivfpq: cells that a query looks into; default: an eighth, at least 8
    rerank: int = Field(10, ge=1)  # ivfpq: candidates per hit whose score is computed from the whole vectors

    def chosen_kind(self, count: int) -> IndexKind:
        """The kind for so many vectors. Raises VectorIndexError if they are too few for the one asked for."""
        if self.kind == "ivfpq" and count < MIN_IVFPQ:
            raise VectorIndexError(
                f"{count} vectors are too few to learn the codes of an ivfpq index, which takes {MIN_IVFPQ} or more; "
                "use kind flat or hnsw"
            )
        if self.kind != "auto":
            return self.kind
        return "flat" if count <= MAX_FLAT else "hnsw" if count <= MAX_HNSW else "ivfpq"

    def chosen_lists(self, count: int) -> int:
        """The number of cells: so that each can be learned from enough vectors."""
        return self.lists or max(1, min(round(4 * count**0.5), count // POINTS_PER_CENTROID))

    def chosen_probes(self, num_lists: int) -> int:
        """The number of cells that a query looks into."""
        return min(num_lists, self.probes or max(8, num_lists // 8))

    def num_training(self, count: int) -> int:
        """How many vectors cells and codes are learned from."""
        return min(count, POINTS_PER_CODE * max(CODES, self.chosen_lists(count)))

    def chosen_code_bytes(self, dim: int) -> int:
        """Bytes per vector. Raises VectorIndexError if they do not divide the dim."""
        if self.code_bytes is None:
            most = min(max(dim // DIMS_PER_BYTE, MIN_CODE_BYTES), dim)
            return max(size for size in range(1, most + 1) if dim % size == 0)
        if dim % self.code_bytes:
            divisors = [size for size in range(1, dim + 1) if dim % size == 0]
            raise VectorIndexError(
                f"index.code_bytes={self.code_bytes} does not divide the dim {dim}; use one of "
                f"{', '.join(map(str, divisors))}"
            )
        return self.code_bytes
