"""Everything that changes while a model trains, in one place, so that a checkpoint can hold all of it."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mcbeit.checkpoint import (
    Checkpoint,
    load_optimizer_tensors,
    load_random_tensors,
    optimizer_tensors,
    random_tensors,
)
from mcbeit.device import Precision


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

    def apply_gradients(self, lr: float, clip_grad: float | None) -> Tensor:
        """One optimiser step; returns the gradient's global norm before clipping, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, clip_grad or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return norm

    @torch.no_grad()
    def update_teacher(self, student: nn.Module, decay: float) -> None:
        """Move the teacher towards the student: an exponential moving average over the steps."""
        if self.teacher is not None:
            torch._foreach_lerp_(list(self.teacher.parameters()), list(student.parameters()), 1 - decay)

    def checkpoint(self) -> Checkpoint:
        """All of it, as a checkpoint of the finished steps."""
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "random": random_tensors(),
        }
        if self.teacher is not None:
            tensors["teacher"] = self.teacher.state_dict()
        return Checkpoint(self.step, tensors, {**self.numbers, "scaler": self.scaler.state_dict()})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Undo `checkpoint` on a state that was built from the same config."""
        self.model.load_state_dict(checkpoint.tensors["model"])
        load_optimizer_tensors(self.optimizer, checkpoint.tensors["optimizer"])
        load_random_tensors(checkpoint.tensors["random"])
        if self.teacher is not None:
            self.teacher.load_state_dict(checkpoint.tensors["teacher"])
        self.numbers = {name: value for name, value in checkpoint.numbers.items() if name != "scaler"}
        if self.scaler.is_enabled() and checkpoint.numbers["scaler"]:  # else the precision is another one now
            self.scaler.load_state_dict(checkpoint.numbers["scaler"])
        self.step = checkpoint.step
