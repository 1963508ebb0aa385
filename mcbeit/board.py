"""What the workers of a run and the process that started them tell each other; lives in a process of its own."""

from typing import Any, Literal, NamedTuple

from mcbeit.progress import Display

MAX_STARTS = 4  # without progress in between
Outcome = tuple[Literal["complete", "interrupted", "failed"], Any]


class View(NamedTuple):
    """What a person should see: the job that is on, and what has been said since the last look."""

    title: str
    total: int
    done: int
    status: str | None
    notes: list[str]


class Board:
    """Written by the first worker, read by the driver; a Ray actor, so that it outlives every worker."""

    def __init__(self) -> None:
        self._job: tuple[str, int, int, str | None] = ("", 0, 0, None)
        self._notes: list[str] = []
        self._wants_stop = False
        self._outcome: Outcome | None = None
        self._failure: str | None = None
        self._starts, self._step = 0, -1
        self._has_begun = False

    def enter(self) -> tuple[bool, bool]:
        """A worker group starts: whether there is anything left to do, and whether training had begun before."""
        self._starts += 1
        if self._starts > MAX_STARTS and self._outcome is None:
            self._outcome = ("failed", self._why_no_progress())
        return self._outcome is None, self._has_begun

    def begin(self, step: int) -> None:
        """Training goes on from this step."""
        if step > self._step:
            self._step, self._starts = step, 1
        self._has_begun = True

    def fail(self, text: str) -> None:
        """A worker has met an error; it may be that another one died."""
        self._failure = text

    def end(self, outcome: Outcome) -> None:
        """The run is over; the first word counts."""
        self._outcome = self._outcome or outcome

    def outcome(self) -> Outcome | None:
        """How the run ended; None if it has not."""
        return self._outcome

    def failure(self) -> str | None:
        """The last error that a worker has met."""
        return self._failure

    def ask_to_stop(self) -> None:
        """The driver wants a checkpoint and an orderly end."""
        self._wants_stop = True

    def wants_stop(self) -> bool:
        """Whether the driver has asked for it."""
        return self._wants_stop

    def show(self, title: str, total: int, done: int, status: str | None) -> None:
        """How far a job is."""
        self._job = (title, total, done, status or self._job[3])

    def note(self, message: str) -> None:
        """A line that stays."""
        self._notes.append(message)

    def look(self) -> View:
        """What there is to see now; each note is handed out once."""
        notes, self._notes = self._notes, []
        return View(*self._job, notes)

    def _why_no_progress(self) -> str:
        return (
            f"the training was started {MAX_STARTS} times at step {max(self._step, 0)} and did not reach its next "
            f"checkpoint; the last error of a worker: {self._failure or 'none, it was killed'}"
        )


class DriverDisplay:
    """Shows in the driver what the board says."""

    def __init__(self) -> None:
        self._display: Display | None = None
        self._shown = ("", 0)

    def show(self, view: View) -> None:
        """Bring the screen up to date."""
        if view.title and (view.title, view.total) != self._shown:
            self.close()
            self._display = Display(view.title, view.total, done=view.done).__enter__()
            self._shown = (view.title, view.total)
        if self._display is None:
            return
        for note in view.notes:
            self._display.note(note)
        if view.done != self._display.done:
            self._display.update(view.done, view.status)

    def close(self) -> None:
        """Give the terminal back."""
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None
