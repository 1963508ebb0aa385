"""What a source of images is: encoded images in a fixed order, read by number."""

from collections import Counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

Labels = Int[np.ndarray, " image"]


@runtime_checkable
class ImageSource(Protocol):
    """An ordered collection of encoded images, with labels if it knows them."""

    labels: Labels | None
    classes: list[str]
    passed_over: Counter[str]  # files that no image can be in, by suffix

    def __len__(self) -> int:
        """The number of images, readable or not."""

    def name(self, index: int) -> str:
        """What a person calls the image: its path."""

    def read(self, index: int) -> bytes:
        """The encoded image; raises OSError if it cannot be read."""

    def summary(self) -> dict[str, Any]:
        """The number of images, and a hash that is another one if they are, or are called, otherwise; for JSON."""


def source_notes(source: ImageSource) -> list[str]:
    """What a person should know of a source before it is used."""
    if not source.passed_over:
        return []
    found = ", ".join(f"{count} x {suffix}" for suffix, count in source.passed_over.most_common(4))
    return [f"{source.passed_over.total()} files of other kinds are passed over: {found}"]


def class_order(name: str) -> tuple[bool, int, str]:
    """Numbers by their value, before words."""
    is_number = name.isascii() and name.isdigit()
    return not is_number, int(name) if is_number else 0, name
