"""Progress of a build, on stderr."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console

from mcbeit.progress import Display

T = TypeVar("T")


def say(message: str) -> None:
    """Write one line to stderr."""
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], *, label: str, total: int) -> Iterator[T]:
    """Pass the items through and show how many of `total` are done."""
    with Display(label, total) as display:
        for done, item in enumerate(items, start=1):
            yield item
            display.advance(f"{100 * done // total} %")
