"""This process among those that train: its group, who may stop it, and where it shows how it goes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

from rich.console import Console

from mcbeit.errors import Interrupted
from mcbeit.group import ALONE, Group
from mcbeit.progress import Display
from mcbeit.stop import StopRequest


@dataclass(frozen=True)
class Worker:
    """What a launcher gives to the training. The default is a process alone, with a person before it."""

    group: Group = ALONE
    stop: StopRequest = field(default_factory=StopRequest)
    show: Callable[..., Display] = Display
    began: Callable[[int], None] = lambda step: None  # told the step that training goes on from

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
            f"stopped after {step:,} steps, which are saved; go on with the same command and --resume ({run})",
            self.stop.signal,
        )

    def alone(self) -> "Worker":
        """The first worker, for what it does while the others wait."""
        return replace(self, group=ALONE, began=lambda step: None)
