"""What goes into an index and what comes out: plain values, which also travel from process to process."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mcbeit.encoder import EncoderSpec

Scalar = str | int | float | bool | None
Filter = Mapping[str, Scalar | Sequence[Scalar]]  # key of the metadata -> its value, or one of several
NO_FILTER: Filter = MappingProxyType({})


class StoreError(Exception):
    """`code` is not_found, exists, invalid, wrong_model, full, damaged or failed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class StoreItem(NamedTuple):
    """A vector with its name and whatever else is known of it."""

    id: str
    vector: np.ndarray  # float32 [dim]; of unit length when it comes out
    metadata: Mapping[str, Any] | None = None


class StoreHit(NamedTuple):
    """A vector near to a query; `score` is the cosine."""

    id: str
    score: float
    metadata: Mapping[str, Any] | None
    vector: np.ndarray | None = None


class Question(NamedTuple):
    """What is searched for: the nearest of a vector, or of the item with an id, which is left out itself."""

    vector: np.ndarray | None = None
    id: str | None = None
    k: int = 10
    offset: int = 0
    filter: Filter = NO_FILTER
    dedup: float | None = None  # hits whose cosine to a better one is above it are left out
    with_vectors: bool = False


class StoreFacts(NamedTuple):
    """What an index is."""

    name: str
    num_items: int
    spec: EncoderSpec
