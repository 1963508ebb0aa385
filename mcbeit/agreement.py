"""What all workers learn of every step alike, so that they decide alike: to skip it, to stop, to count bad images.

Each step adds up four numbers over the workers, on the device. The host reads them a few steps later on a GPU, where
reading at once would make it wait; as all workers read the same step at the same time, they still act together.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mcbeit.group import Group
from mcbeit.meter import StepResult

DELAY_ON_GPU = 2  # steps


class Flags(NamedTuple):
    """What one worker says at a step."""

    wants_stop: bool = False
    has_corrupt: bool = False  # its share held images that cannot be read


NO_FLAGS = Flags()


class Verdict(NamedTuple):
    """What is known of a step, on the device: the same for all workers."""

    loss: Float[Tensor, ""]  # mean over the whole batch
    is_bad: Float[Tensor, ""]  # above 0 if the loss of any worker is not finite
    flags: Float[Tensor, "flag"]  # how many workers raise each flag


class Told(NamedTuple):
    """The same, read by the host, with what the optimiser did."""

    step: int
    loss: float
    gradient_norm: float
    skipped: bool
    wants_stop: bool
    has_corrupt: bool


def agree(group: Group, loss: Float[Tensor, ""], flags: Flags) -> Verdict:
    """Add up what the workers say of a step; `loss` is a worker's share of the mean. Does not wait for the device."""
    facts = torch.zeros(2 + len(flags), device=loss.device)
    facts[0], facts[1] = loss, torch.isfinite(loss).logical_not()
    for i, flag in enumerate(flags):
        if flag:
            facts[2 + i].fill_(1.0)
    group.sum(facts)
    return Verdict(facts[0], facts[1], facts[2:])


class Agreement:
    """Verdicts on their way to the host."""

    def __init__(self, device: torch.device) -> None:
        self.delay = DELAY_ON_GPU if device.type == "cuda" else 0
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def post(self, step: int, result: StepResult) -> None:
        """Add a step, in order."""
        numbers = torch.stack([result.loss, result.gradient_norm.float(), result.skipped.float()])
        facts = torch.cat([numbers, result.flags])
        event = None
        if facts.is_cuda:
            host = torch.empty(facts.shape, pin_memory=True)
            host.copy_(facts, non_blocking=True)
            facts, event = host, torch.cuda.Event()
            event.record()
        self._pending.append((step, facts, event))

    def read(self, *, up_to_now: bool = False) -> Iterator[Told]:
        """The steps that are old enough to be read without waiting, or with `up_to_now` all of them."""
        while len(self._pending) > (0 if up_to_now else self.delay):
            step, facts, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            loss, norm, skipped, wants_stop, has_corrupt = facts.tolist()
            yield Told(step, loss, norm, skipped > 0, wants_stop > 0, has_corrupt > 0)
