"""What a person sees of a long job, on stderr: a live bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0  # at most one plain line in this time
QUIET_SECONDS = 30.0  # after which a plain line comes without a status too


class Display:
    """A named job of `total` steps. Use it as a context manager; `advance` on every step, `note` for a message."""

    def __init__(self, title: str, total: int, *, done: int = 0, console: Console | None = None) -> None:
        self.title, self.total, self.done = title, total, done
        self._console = console or Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._last_line = time.monotonic() - PLAIN_SECONDS  # a first status is told at once
        self._warned: set[str] = set()

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, status="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, status: str | None = None) -> None:
        """One more step is done; `status` is a short text about how it goes."""
        self.update(self.done + 1, status)

    def update(self, done: int, status: str | None = None) -> None:
        """So many steps are done."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            if status is not None:
                self._bar.update(self._task, status=status)
        elif status is None:
            self._print_after(QUIET_SECONDS, "")
        else:  # the last step is always told
            self._print_after(0.0 if self.done == self.total else PLAIN_SECONDS, f"  {status}")

    def note(self, message: str) -> None:
        """A line that stays."""
        (self._bar.console if self._bar else self._console).print(f"{self.title}: {message}", markup=False)

    def warn(self, message: str) -> None:
        """A line that stays, said once."""
        kind = message.partition("(")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            self.note(f"warning: {message}")

    def tell(self, notes: Iterable[str], warnings: Iterable[str]) -> None:
        """What a person should know before the first step."""
        for note in notes:
            self.note(note)
        for warning in warnings:
            self.warn(warning)

    def _print_after(self, seconds: float, status: str) -> None:
        """A plain line, if the last one is so long ago."""
        now = time.monotonic()
        if now - self._last_line >= seconds:
            self._last_line = now
            self._console.print(f"{self.title} {self.done}/{self.total}{status}", markup=False)
