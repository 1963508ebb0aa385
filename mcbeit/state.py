"""Everything that changes while a model trains, in one place, so that a checkpoint can hold all of it."""

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mcbeit.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    load_random_tensors,
    optimizer_tensors,
    random_tensors,
)
from mcbeit.device import Precision
from mcbeit.parallel import is_sharded, placed_like, whole, whole_state


class Applied(NamedTuple):
    """What an optimiser step did, on the device."""

    gradient_norm: Float[Tensor, ""]  # before clipping, over all parameters
    skipped: Bool[Tensor, ""]


@dataclass
class TrainingState:
    """A model in training. `step` counts finished steps, `numbers` holds what else must survive (JSON values)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    teacher: nn.Module | None = None
    step: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, *, teacher_of: nn.Module | None
    ) -> "TrainingState":
        """The state before step 0; the teacher, if any, begins as a copy."""
        device = next(model.parameters()).device
        teacher = None if teacher_of is None else copy.deepcopy(teacher_of).eval().requires_grad_(False)
        scaler = torch.amp.GradScaler(device.type, enabled=precision.scales_loss)
        return cls(model, optimizer, scaler, teacher)

    def apply_gradients(self, lr: float, clip_grad: float | None, is_bad: Float[Tensor, ""]) -> Applied:
        """One optimiser step; it changes nothing if `is_bad` is above 0 or the gradient's norm is not finite.

        A group of parameters that has an `lr_scale` takes steps of `lr` times that. With loss scaling an infinite norm
        is normal: the scaler then skips the step by itself, and only `is_bad` counts as skipped.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = whole(nn.utils.clip_grad_norm_(parameters, clip_grad or float("inf")))
        skipped = is_bad > 0
        if not self.scaler.is_enabled():
            skipped = skipped | ~torch.isfinite(norm)
        self._step_unless(skipped)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return Applied(norm, skipped)

    def _step_unless(self, skipped: Bool[Tensor, ""]) -> None:
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        elif self.optimizer.defaults["fused"] and not is_sharded(self.model):  # asks its own flag, on the device
            self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(skipped):
            self.optimizer.step()

    @torch.no_grad()
    def update_teacher(self, student: nn.Module, decay: float) -> None:
        """Move the teacher towards the student: an exponential moving average over the steps."""
        if self.teacher is not None:
            torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - decay)

    def checkpoint(self) -> Checkpoint:
        """All of it, as a checkpoint of the finished steps; all workers must ask for it."""
        tensors = {
            "model": whole_state(self.model),
            "optimizer": {name: whole(tensor) for name, tensor in optimizer_tensors(self.optimizer).items()},
            "random": random_tensors(),
        }
        if self.teacher is not None:
            tensors["teacher"] = self.teacher.state_dict()
        return Checkpoint(self.step, tensors, {**self.numbers, "scaler": self.scaler.state_dict()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Undo `checkpoint` on a state that was built from the same config."""
        own = self.model.state_dict()
        found = checkpoint.tensors["model"]
        self.model.load_state_dict({n: placed_like(t, own[n]) if n in own else t for n, t in found.items()})
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        load_random_tensors(checkpoint.tensors["random"])
        if self.teacher is not None:
            self.teacher.load_state_dict(checkpoint.tensors["teacher"])
        self.numbers = {name: value for name, value in checkpoint.numbers.items() if name != "scaler"}
        if self.scaler.is_enabled() and checkpoint.numbers["scaler"]:  # else the precision is another one now
            self.scaler.load_state_dict(checkpoint.numbers["scaler"])
        self.step = checkpoint.step
