"""This process among those that train: its group, who may stop it, and where it shows how it goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console

from mcbeit.device import thread_limit
from mcbeit.errors import Interrupted
from mcbeit.group import ALONE, Group
from mcbeit.progress import Display
from mcbeit.stop import StopRequest
from mcbeit.storage import Place, is_remote, place_of


@dataclass(frozen=True)
class Worker:
    """What a launcher gives to the training. The default is a process alone, with a person before it."""

    group: Group = ALONE
    stop: StopRequest = field(default_factory=StopRequest)
    show: Callable[..., Display] = Display
    began: Callable[[int], None] = lambda step: None  # told the step that training goes on from
    place: Place | None = None  # where the run is kept, if that is not its folder alone

    @contextmanager
    def at_work(self, run: str, *, threads: int | None) -> Iterator[tuple["Worker", str]]:
        """What surrounds a job: its threads, stop signals, the place of its run; gives the folder to work in.

        A run in a folder keeps the place of the worker: it may lie in the folder of a run that is kept elsewhere.
        """
        with thread_limit(threads), self.stop.listening(), place_of(run) as place:
            yield (replace(self, place=place) if is_remote(run) else self), str(place.path)

    def fetch(self, below: str = "") -> None:
        """Bring the run folder up to date with what is kept elsewhere."""
        if self.place is not None:
            self.place.pull(below)

    def keep(self) -> None:
        """Send what has changed in the run folder to where it is kept."""
        if self.place is not None:
            self.place.push()

    def named(self, text: str) -> str:
        """The text with the names that people know the run folder by."""
        return text if self.place is None else self.place.named(text)

    def display(self, title: str, total: int, *, done: int) -> Display:
        """The display of a job; only the first worker's is seen."""
        if self.group.is_first:
            return self.show(title, total, done=done)
        return Display(title, total, done=done, console=Console(quiet=True))

    def interrupted(self, run: str, step: int) -> Interrupted:
        """What to raise after the agreed stop."""
        return Interrupted(
            f"stopped after {step:,} steps, which are saved; go on with the same command and --resume "
            f"({self.named(run)})",
            self.stop.signal,
        )

    def alone(self) -> "Worker":
        """The first worker, for what it does while the others wait."""
        return replace(self, group=ALONE, began=lambda step: None)
