"""AdamW with the official parameter groups, and schedules that are pure functions of the step."""

import math
from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.errors import ConfigError

Beta = Annotated[float, Field(ge=0, lt=1)]
UNDECAYED = frozenset({"pos_embed", "cls_token"})


class DurationConfig(Config):
    """How long a run is, and how large its batches."""

    epochs: float = Field(800, gt=0)
    steps: int | None = Field(None, ge=1)  # instead of epochs
    batch_size: int = Field(2048, ge=1)  # images (with their masks) per step, over all workers
    max_skipped_steps: int = Field(5, ge=1)  # in a row, as their loss or gradient is not finite; then the run ends

    @property
    def num_parts(self) -> int:
        """Into how many parts a batch is split."""
        return 1

    def total_steps(self, steps_per_epoch: int) -> int:
        """The steps of the whole run, at least 1."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))


class OptimConfig(DurationConfig):
    """How long, how large the batches, how large the steps. `lr` is absolute: it is not scaled by the batch size."""

    warmup_epochs: float = Field(10, ge=0)
    accumulate: int = Field(1, ge=1)  # parts a worker's share of the batch is computed in
    lr: float = Field(1.5e-3, gt=0)
    min_lr: float = Field(1e-5, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: float | None = Field(3.0, gt=0)  # largest global norm of the gradient

    @model_validator(mode="after")
    def _rises_and_falls(self) -> "OptimConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"optim.min_lr={self.min_lr:g} is more than optim.lr={self.lr:g}; lower it")
        if self.steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"optim.warmup_epochs={self.warmup_epochs:g} must be less than optim.epochs={self.epochs:g}; set both"
            )
        return self

    @property
    def num_parts(self) -> int:
        """Into how many parts a batch is split."""
        return self.accumulate

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step (from 0): linear from 0 over the warm-up, then a cosine towards `min_lr`.

        As in the official schedule, the last step of the warm-up and the first after it both have `lr`.
        """
        total = self.total_steps(steps_per_epoch)
        warmup = min(round(self.warmup_epochs * steps_per_epoch), total - 1)
        if step < warmup:
            return self.lr * step / max(warmup - 1, 1)
        return cosine(self.lr, self.min_lr, step - warmup, total - warmup)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """Half a cosine from `start` at step 0 towards `end`, which step `steps` would reach."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def decays(name: str, parameter: Tensor, undecayed: frozenset[str] = UNDECAYED) -> bool:
    """The official rule: no weight decay on vectors, biases, the cls token and absolute positions.

    The mask token and the relative position bias tables are decayed.
    """
    return parameter.ndim > 1 and not name.endswith(".bias") and name.split(".")[-1] not in undecayed


def make_optimizer(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in two groups."""
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
    return adamw(groups, config)


def adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over groups of parameters; fused on the devices that have it."""
    fused = {parameter.device.type for group in groups for parameter in group["params"]} <= {"cuda", "cpu"}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def steps_per_epoch(num_images: int, config: DurationConfig, masks_per_image: int = 1) -> int:
    """Steps in which every image is decoded once. Raises ConfigError if a batch does not fit the images."""
    crops = crops_per_step(config, masks_per_image)
    if crops > num_images:
        raise ConfigError(
            f"optim.batch_size={config.batch_size} needs {crops} images per step, but the source has {num_images}; "
            f"set optim.batch_size to at most {num_images * masks_per_image}"
        )
    return num_images // crops


def crops_per_step(config: DurationConfig, masks_per_image: int) -> int:
    """Images decoded per step. Raises ConfigError unless masks and accumulation divide the batch."""
    parts = masks_per_image * config.num_parts
    if config.batch_size % parts:
        raise ConfigError(
            f"optim.batch_size={config.batch_size} must be a multiple of data.masks_per_image * optim.accumulate "
            f"= {masks_per_image} * {config.num_parts} = {parts}"
        )
    return config.batch_size // masks_per_image
