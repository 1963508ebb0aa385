"""The processes that train one model together, seen from one of them; how they were started does not matter here.

Tensors go over the default process group (NCCL on GPUs, gloo on CPUs). What the host must know of the others goes over
a group of its own, gloo with a long timeout: a worker may wait there while the first one trains a tokenizer or saves.
"""

import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from mcbeit.errors import Interrupted, McbeitError, RunError

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Group:
    """One process among `size`; the first one, of rank 0, owns the run folder. All of them call each method."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # of them on this machine
    host_group: Any = None

    @classmethod
    def current(cls) -> "Group":
        """The group of an initialised `torch.distributed`, described as torchrun and Ray Train do it."""
        return cls(
            dist.get_rank(),
            dist.get_world_size(),
            int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())),
            dist.new_group(backend="gloo", timeout=PATIENCE) if dist.get_world_size() > 1 else None,
        )

    @property
    def is_first(self) -> bool:
        """Whether this process owns the run folder and speaks to people."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch. Raises RunError if there are fewer items than processes."""
        if len(items) < self.size:
            raise RunError(
                f"a batch of {len(items)} images cannot be shared by {self.size} workers; "
                "use fewer workers or a larger optim.batch_size"
            )
        return items[self.rank :: self.size]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """The value of every process, by rank. Waits for all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host_group)
        return found

    def first(self, action: Callable[[], T]) -> T:
        """What the first process makes of `action`, which the others do not run but wait for.

        Its McbeitError, OSError or Interrupted is raised in all of them.
        """
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = action()
            except (McbeitError, OSError, Interrupted) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self.host_group)
        if outcome[1] is not None:
            raise _shared(outcome[1])
        return outcome[0]

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite a CPU tensor with the first process's."""
        if self.size > 1:
            dist.broadcast(tensor, src=0, group=self.host_group)

    def each(self, action: Callable[[], T]) -> T:
        """What this process makes of `action`, which all run; an McbeitError of one is raised in all of them."""
        if self.size == 1:
            return action()
        result, error = None, None
        try:
            result = action()
        except McbeitError as found:
            error = found
        errors = [found for found in self.gather(error) if found is not None]
        if errors:
            raise _shared(errors[0])
        return result  # type: ignore[return-value]


def _shared(error: Exception) -> Exception:
    if isinstance(error, McbeitError):
        error.is_shared = True
    return error


ALONE = Group()
