"""This process among those that train: its group, who may stop it, and where it shows how it goes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from rich.console import Console

from mcbeit.errors import Interrupted
from mcbeit.group import ALONE, Group
from mcbeit.progress import Display
from mcbeit.stop import StopRequest
from mcbeit.storage import Place


@dataclass(frozen=True)
class Worker:
    """What a launcher gives to the training. The default is a process alone, with a person before it."""

    group: Group = ALONE
    stop: StopRequest = field(default_factory=StopRequest)
    show: Callable[..., Display] = Display
    began: Callable[[int], None] = lambda step: None  # told the step that training goes on from
    place: Place | None = None  # where the run is kept, if that is not its folder alone

    def placed(self, place: Place) -> "Worker":
        """This worker with a place for its run."""
        return replace(self, place=place)

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

    def listening(self) -> AbstractContextManager[None]:
        """Take stop signals over in here."""
        return self.stop.listening()

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
