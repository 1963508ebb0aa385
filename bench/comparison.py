"""Two results of the same task on the same images: how far apart they are, and how far they may be by chance.

Where both keep their answers, the images are compared one by one: what both get right, and what both get wrong, says
nothing about the difference, so its uncertainty is that of the others alone (McNemar, 1947).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mcbeit.bench.manifest import Used
from mcbeit.bench.result import SUFFIX, Result, Z, read_result, read_results
from mcbeit.bench.summary import row_names
from mcbeit.errors import BenchError

HEADER = ["task, images: model", "first", "second", "difference", "± 95 %", "images that differ", "verdict"]


class Difference(NamedTuple):
    """Second minus first, of one metric."""

    value: float
    half: float | None  # of the 95 % interval; None: unknown
    num_only_first: int | None  # images that only the first gets right
    num_only_second: int | None

    @property
    def verdict(self) -> str:
        """In words."""
        if (self.num_only_first, self.num_only_second) == (0, 0):
            return "the same answers"
        if self.half is None:
            return "uncertainty unknown"
        return "within noise" if abs(self.value) <= self.half else "different"


def difference(first: Result, second: Result) -> Difference:
    """How far apart two results are. Raises BenchError if they are not of one protocol and the same images."""
    _check_same(first, second)
    one, other = (result.metrics[result.primary] for result in (first, second))
    value = other.value - one.value
    if first.answers is not None and second.answers is not None and _used(first) == _used(second):
        right, also = first.answers.unpack(), second.answers.unpack()
        lost, won, count = int((right & ~also).sum()), int((also & ~right).sum()), len(right)
        variance = (lost + won - (won - lost) ** 2 / count) / count**2
        return Difference(value, Z * math.sqrt(max(variance, 0.0)), lost, won)
    if one.standard_error is None or other.standard_error is None:
        return Difference(value, None, None, None)
    return Difference(value, Z * math.hypot(one.standard_error, other.standard_error), None, None)


def compare_results(one: Path, other: Path) -> list[list[str]]:
    """A table, the header first: every pair of results of the same task, settings and images.

    Raises BenchError if there is no such pair.
    """
    first, second = _by_question(one), _by_question(other)
    pairs = [(a, b) for key in first for a in first[key] for b in second.get(key, [])]
    if not pairs:
        asked = ", ".join(sorted({f"{key[0]} on {key[1]}" for key in [*first, *second]}))
        raise BenchError(
            f"'{one}' and '{other}' have no result of the same task, settings and images (they have {asked}); measure "
            "both by the same command"
        )
    names = row_names([result for pair in pairs for result in pair])
    rows = zip(pairs, names[::2], names[1::2], strict=True)
    return [HEADER, *(_row(*pair, name, other) for pair, name, other in rows)]


def _row(first: Result, second: Result, name: str, other: str) -> list[str]:
    found = difference(first, second)
    a, b = (result.metrics[result.primary].value for result in (first, second))
    counts = found.num_only_first, found.num_only_second
    differ = "" if counts[0] is None or counts[1] is None else f"{counts[0]:,} lost, {counts[1]:,} won"
    names = name if name == other else f"{name} → {other}"
    return [
        f"{first.task.name}, {first.data.name}: {names}",
        f"{100 * a:.2f}",
        f"{100 * b:.2f}",
        f"{100 * found.value:+.2f}",
        "" if found.half is None else f"{100 * found.half:.2f}",
        differ,
        found.verdict,
    ]


def _by_question(path: Path) -> Mapping[tuple[str, str, str], list[Result]]:
    results = [read_result(path)] if path.suffix == SUFFIX else read_results(path)
    found: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.task.name, result.data.name, _question(result)), []).append(result)
    return found


def _question(result: Result) -> str:
    """What must be the same."""
    images = {name: split.manifest for name, split in sorted(result.data.splits.items())}
    return f"{result.task.version} {result.task.preset} {result.task.protocol} {result.task.limit} {images}"


def _used(result: Result) -> dict[str, Used]:
    """Answers to other images, even if as many, are no pairs."""
    return {name: split.used for name, split in result.data.splits.items()}


def _check_same(first: Result, second: Result) -> None:
    if first.task.name != second.task.name or _question(first) != _question(second):
        raise BenchError(
            f"{first.task.name} on {first.data.name} and {second.task.name} on {second.data.name} differ in their "
            "settings or images; only numbers of the same protocol on the same images can be compared"
        )
