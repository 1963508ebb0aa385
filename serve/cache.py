"""Vectors that were computed already, by what they are of."""

import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np


class Key(NamedTuple):
    """Everything that a vector depends on. Never less than the hash of all bytes, or images would share vectors."""

    sha256: str  # of the image file
    fingerprint: str  # of the encoder: weights, preprocessing, pooling, layer
    patches: bool


class VectorCache:
    """The vectors that were asked for last, up to so many bytes. Any number of threads may use it."""

    OVERHEAD_BYTES = 512  # of an entry beside its numbers, about

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._vectors: OrderedDict[Key, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, key: Key) -> np.ndarray | None:
        """The vector, if it is there; read-only."""
        with self._lock:
            found = self._vectors.get(key)
            if found is not None:
                self._vectors.move_to_end(key)
            return found

    def put(self, key: Key, vector: np.ndarray) -> None:
        """Keep a vector, and let go of those that were not asked for longest."""
        vector = vector.copy()  # not a view that would keep its whole batch
        vector.flags.writeable = False
        with self._lock:
            if (before := self._vectors.pop(key, None)) is not None:
                self.num_bytes -= before.nbytes + self.OVERHEAD_BYTES
            if (size := vector.nbytes + self.OVERHEAD_BYTES) > self.max_bytes:
                return
            self._vectors[key] = vector
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._vectors.popitem(last=False)[1].nbytes + self.OVERHEAD_BYTES
