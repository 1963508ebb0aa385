"""Training of linear heads by gradient descent, all from the same batches."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from timm.optim.lars import Lars

from mcbeit.bench.linear_heads import Batch, LinearHeads
from mcbeit.errors import BenchError

TRUST = 0.001  # of LARS: a step is that share of a weight's length, times the learning rate

OptimizerName = Literal["adamw", "sgd", "lars"]


@dataclass(frozen=True)
class HeadRecipe:
    """How heads are trained: the same for all but for their learning rates."""

    optimizer: OptimizerName
    epochs: int
    weight_decay: float = 0.0
    momentum: float = 0.9  # of sgd and lars
    warmup_epochs: float = 0.0
    schedule: Literal["per step", "per epoch"] = "per step"  # when the learning rate changes

    def lr_factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rates are multiplied with at a step: a line from 0 to 1, then half a cosine towards 0."""
        done = step / steps_per_epoch if self.schedule == "per step" else float(step // steps_per_epoch)
        if done < self.warmup_epochs:
            return done / self.warmup_epochs
        return 0.5 * (1 + math.cos(math.pi * (done - self.warmup_epochs) / (self.epochs - self.warmup_epochs)))


class HeadTraining:
    """A training that can be left after any epoch, and gone on with to the same end, bit for bit.

    training = HeadTraining(heads, recipe, steps_per_epoch=100)
    training.load_state_dict(saved)  # to go on
    training.run(batches, on_epoch=lambda losses: save(training.state_dict()))
    """

    def __init__(self, heads: LinearHeads, recipe: HeadRecipe, *, steps_per_epoch: int) -> None:
        """Raises BenchError if the warm-up is as long as the training."""
        if recipe.warmup_epochs >= recipe.epochs:
            raise BenchError(f"{recipe.warmup_epochs:g} epochs of warm-up leave nothing of {recipe.epochs} epochs")
        self.heads, self.recipe, self.steps_per_epoch = heads, recipe, steps_per_epoch
        self.epoch = 0  # how many are done
        self._optimizer = _optimizer(heads, recipe)

    def run(
        self,
        batches: Callable[[int], Iterable[Batch]],
        on_epoch: Callable[[Float64[np.ndarray, " head"]], None] = lambda losses: None,
    ) -> None:
        """Train on the batches of each epoch that is left, and call `on_epoch` with the mean losses of each.

        Raises BenchError if an epoch has another number of batches than `steps_per_epoch`.
        """
        while self.epoch < self.recipe.epochs:
            losses = self._train_epoch(batches(self.epoch))
            self.epoch += 1
            on_epoch(losses)

    def _train_epoch(self, batches: Iterable[Batch]) -> Float64[np.ndarray, " head"]:
        self.heads.train()
        total, step = torch.zeros(len(self.heads.specs), dtype=torch.float64), 0
        for step, batch in enumerate(batches, start=1):
            losses = self.heads.losses(*self.heads.place(batch))
            self._optimizer.zero_grad()
            losses.sum().backward()
            self._set_lr(self.epoch * self.steps_per_epoch + step - 1)
            self._optimizer.step()
            total += losses.detach().cpu()
        if step != self.steps_per_epoch:
            raise BenchError(f"epoch {self.epoch} had {step} batches, not {self.steps_per_epoch}")
        return (total / step).numpy()

    def _set_lr(self, step: int) -> None:
        factor = self.recipe.lr_factor(step, self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {"epoch": self.epoch, "heads": self.heads.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of a training of the same heads by the same recipe."""
        self.epoch = state["epoch"]
        self.heads.load_state_dict(state["heads"])
        self._optimizer.load_state_dict(state["optimizer"])


def _optimizer(heads: LinearHeads, recipe: HeadRecipe) -> torch.optim.Optimizer:
    groups = list(_groups(heads, recipe.optimizer))
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        case "sgd":
            return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        case "lars":
            decay = recipe.weight_decay
            return Lars(groups, momentum=recipe.momentum, weight_decay=decay, trust_coeff=TRUST, always_adapt=True)


def _groups(heads: LinearHeads, optimizer: OptimizerName) -> Iterator[dict[str, Any]]:
    """The parameters of each learning rate. LARS neither adapts nor decays the biases, as MAE has it."""
    for lr in dict.fromkeys(spec.lr for spec in heads.specs):
        linears = [head for spec, head in zip(heads.specs, heads.heads, strict=True) if spec.lr == lr]
        weights, biases = [one.weight for one in linears], [one.bias for one in linears]
        common = {"lr": lr, "peak_lr": lr}
        if optimizer == "lars":
            yield common | {"params": weights}
            yield common | {"params": biases, "always_adapt": False, "weight_decay": 0.0}
        else:
            yield common | {"params": weights + biases}
