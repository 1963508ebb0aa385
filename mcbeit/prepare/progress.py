"""Progress on stderr: a bar where a person is watching, a plain line now and then where the output is kept."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_SECONDS = 10.0


def say(message: str) -> None:
    """Write one line to stderr."""
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], *, label: str, total: int) -> Iterator[T]:
    """Pass the items through and report how many of `total` are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _track_plainly(items, label=label, total=total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, description=label, total=total)
    say(f"{label}: {total} done")


def _track_plainly(items: Iterable[T], *, label: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= PLAIN_SECONDS:
            say(f"{label}: {done} of {total}")
            last = time.monotonic()
        yield item
    say(f"{label}: {total} done")
