"""Several sources as one."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcbeit.sources.source import Described, ImageSource, class_order


class JoinedSource(Described):
    """Several sources one after the other; labelled only if all are, and then by class name."""

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        super().__init__(
            passed_over=sum((part.passed_over for part in parts), Counter[str]()),
            channels=parts[0].channels,
            damaged=[damage for part in parts for damage in part.damaged],
            notes=[note for part in parts for note in part.notes],
        )
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.classes = sorted({name for part in parts for name in part.classes}, key=class_order)
        number = {name: i for i, name in enumerate(self.classes)}
        labels = [
            np.asarray([number[name] for name in part.classes], dtype=np.int64)[part.labels]
            for part in parts
            if part.labels is not None
        ]
        self.labels = np.concatenate(labels) if len(labels) == len(parts) else None
        if self.labels is None:
            self.classes = []

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> tuple[ImageSource, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[part], index - int(self._starts[part])

    def name(self, index: int) -> str:
        """The path within the part that holds the image."""
        part, inner = self._find(index)
        return part.name(inner)

    def read(self, index: int) -> bytes:
        """The bytes from the part that holds the image."""
        part, inner = self._find(index)
        return part.read(inner)

    def summary(self) -> dict[str, Any]:
        """By the summaries of the parts, in their order."""
        names = hashlib.sha256(json.dumps([part.summary() for part in self.parts]).encode()).hexdigest()
        return {"images": len(self), "names_sha256": names}
