"""Some images of a source."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcbeit.sources.source import Described, ImageSource


class SubsetSource(Described):
    """The images of these numbers, in the order given, with the classes of the whole source."""

    def __init__(self, source: ImageSource, indices: Sequence[int] | np.ndarray) -> None:
        self.source, self.indices = source, np.asarray(indices, np.int64)
        super().__init__(
            labels=None if source.labels is None else source.labels[self.indices],
            classes=source.classes,
            passed_over=source.passed_over,
            channels=source.channels,
            damaged=source.damaged,
            notes=source.notes,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The name in the whole source."""
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> bytes:
        """The bytes from the whole source."""
        return self.source.read(int(self.indices[index]))

    def summary(self) -> dict[str, Any]:
        """By the whole source and the numbers."""
        whole = self.source.summary()["names_sha256"]
        chosen = hashlib.sha256(whole.encode() + self.indices.tobytes()).hexdigest()
        return {"images": len(self), "names_sha256": chosen}
