"""From what samples say about their class to numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mcbeit.errors import DataError
from mcbeit.sources.source import Labels, class_order

MAX_LABEL = 10**6


class Numbered(NamedTuple):
    """The labels of all samples, if all have one; and what a person should know about that."""

    labels: Labels | None = None
    classes: Sequence[str] = ()
    notes: Sequence[str] = ()


def number_labels(values: Sequence[int | str | None], where: str, names: Sequence[str] | None = None) -> Numbered:
    """Integers stay what they are, with `names` as their classes; texts are numbered in the order of their names.

    Labels are of use only if every sample has one; None and negative numbers are none. Raises DataError for an integer
    that no class has.
    """
    missing = sum(value is None or (isinstance(value, int) and value < 0) for value in values)
    if missing:
        note = f"{missing} of {len(values)} samples of '{where}' have no label, so its labels are not used"
        return Numbered() if missing == len(values) else Numbered(notes=[note])
    if not all(isinstance(value, int) for value in values):
        texts = [str(value) for value in values]
        classes = sorted(set(texts), key=class_order)
        number = {name: i for i, name in enumerate(classes)}
        return Numbered(np.array([number[text] for text in texts], dtype=np.int64), classes)
    labels = np.array(values, dtype=np.int64)
    check_label(int(labels.max(initial=0)), where, len(names) if names else MAX_LABEL + 1)
    return Numbered(labels, names or [str(i) for i in range(int(labels.max(initial=-1)) + 1)])


def check_label(highest: int, where: str, num_classes: int = MAX_LABEL + 1) -> None:
    """Raise DataError if the highest label of a source belongs to no class."""
    if highest >= num_classes:
        raise DataError(
            f"'{where}' has the label {highest}; number the classes from 0 on, to at most {num_classes - 1}"
        )
