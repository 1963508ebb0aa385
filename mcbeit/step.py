"""One optimiser step of all workers on one batch: each computes the gradient of its share, piece by piece."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcbeit.agreement import Flags, agree
from mcbeit.group import Group
from mcbeit.meter import StepResult
from mcbeit.optim import OptimConfig
from mcbeit.parallel import gradients_stay_here
from mcbeit.state import TrainingState


@runtime_checkable
class Piece(Protocol):
    """A part of a worker's share of a batch."""

    @property
    def num_rows(self) -> int:
        """How much of `optim.batch_size` it is."""
        ...


P = TypeVar("P", bound=Piece)


def take_step(
    state: TrainingState,
    network: nn.Module,
    group: Group,
    pieces: Sequence[P],
    loss_of: Callable[[P], Float[Tensor, ""]],
    config: OptimConfig,
    *,
    lr: float,
    flags: Flags,
) -> StepResult:
    """Learn from the pieces of this worker's share; `loss_of` gives the mean loss of one, computed by `network`.

    A loss that is not finite, of any worker, leaves the model as it is. `flags` is what this worker tells the others.
    """
    loss = torch.zeros((), device=next(state.model.parameters()).device)
    for i, piece in enumerate(pieces):
        share = piece.num_rows / config.batch_size  # of the whole batch's mean
        with nullcontext() if i + 1 == len(pieces) else gradients_stay_here(network):
            mean = loss_of(piece)
            state.scaler.scale(mean * (share * group.size)).backward()  # gradients are averaged
        loss += mean.detach() * share
    verdict = agree(group, loss, flags)
    applied = state.apply_gradients(lr, config.clip_grad, verdict.is_bad)
    return StepResult(verdict.loss, applied.gradient_norm, {}, applied.skipped, verdict.flags)
