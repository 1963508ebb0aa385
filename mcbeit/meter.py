"""What is measured while a run goes on: sums on the device, read at log steps only, and warnings about bad targets."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mcbeit.device import matmul_peak, peak_memory
from mcbeit.group import Group

STUCK_MARGIN = 0.02  # nats below log V at which a loss has learned nothing
STUCK_STEPS = 100  # before which that says nothing


class StepResult(NamedTuple):
    """What a step leaves on the device; nothing here has been waited for."""

    loss: Float[Tensor, ""]  # mean over the batch, of all workers
    gradient_norm: Float[Tensor, ""] | None  # None: it was no step along a gradient
    measurements: dict[str, Tensor]  # what costs time is measured at log steps only
    skipped: Bool[Tensor, ""]  # whether the loss or the gradient was not finite, and nothing was learned
    flags: Float[Tensor, " flag"]  # how many workers raise each of `agreement.Flags`


class Meter:
    """Means and speeds between two log lines."""

    def __init__(self, device: torch.device, *, flops_per_image: float = 0.0, peak: float | None = None) -> None:
        self.device, self.flops_per_image, self.peak = device, flops_per_image, peak
        self._result: StepResult | None = None
        self._restart()

    @classmethod
    def of_group(cls, group: Group, device: torch.device, dtype: torch.dtype, *, flops_per_image: float) -> "Meter":
        """A meter of all workers, which compares them with so many times the peak of the first one's device."""
        peak = group.size * group.first(lambda: matmul_peak(device, dtype))
        return cls(device, flops_per_image=flops_per_image, peak=peak)

    def _restart(self) -> None:
        self._loss = torch.zeros((), device=self.device)
        self._steps = torch.zeros((), device=self.device)
        self._images, self._paused, self._since = 0, 0.0, time.perf_counter()

    def count(self, result: StepResult, *, num_images: int) -> None:
        """Add a step, without waiting for the device."""
        self._loss += torch.where(result.skipped, 0.0, result.loss)
        self._steps += ~result.skipped
        self._images += num_images
        self._result = result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is not training."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """The means since the last reading and the measurements of the last step; waits for the device, once.

        The loss is that of the steps that were not skipped, NaN if all were.
        """
        assert self._result is not None
        values = {name: float(value) for name, value in self._result.measurements.items()}
        values = {"loss": float(self._loss / self._steps), **values}
        if "target_entropy" in values:
            values["loss_above_entropy"] = float(self._result.loss) - values["target_entropy"]
        if self._result.gradient_norm is not None:
            values["gradient_norm"] = float(self._result.gradient_norm)
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        values["images_per_second"] = self._images / seconds
        if self.flops_per_image:
            values["model_flops"] = self.flops_per_image * values["images_per_second"]
        if self.peak:
            values["share_of_peak"] = values["model_flops"] / self.peak
        if (memory := peak_memory(self.device)) is not None:
            values["peak_memory_bytes"] = float(memory)
        self._restart()
        return values


def is_due(every_epochs: float | None, steps_per_epoch: int, step: int, total: int) -> bool:
    """Whether something done every so many epochs is due after `step` finished steps; it is at the end."""
    if every_epochs is None:
        return False
    return step % max(1, round(every_epochs * steps_per_epoch)) == 0 or step == total


def target_warnings(record: Mapping[str, float | int], vocab_size: int, *, hard: bool) -> list[str]:
    """What a log line says of targets that teach nothing, which the loss alone would hide."""
    limit, found = math.log(vocab_size), []
    if record["loss"] > limit - STUCK_MARGIN and record["step"] >= STUCK_STEPS:
        found.append(f"the loss is still that of a uniform guess ({record['loss']:.3f}, log V = {limit:.3f})")
    if not hard and record["target_entropy"] > limit - STUCK_MARGIN:
        found.append(f"the targets are uniform (entropy {record['target_entropy']:.3f}); lower the temperature")
    if not hard and record["target_entropy"] < 0.01:
        found.append("the targets are in effect hard (entropy below 0.01); raise the temperature for multi-choice")
    if record["code_perplexity"] < 2:
        found.append("nearly all patches of this batch have the same code; check the tokenizer")
    return found


def status_line(record: Mapping[str, float | int]) -> str:
    """The few numbers that a person follows."""
    parts = [f"loss {record['loss']:.3f}"]
    for key, text in (("loss_above_entropy", "above entropy {:.3f}"), ("masked_accuracy", "accuracy {:.3f}")):
        if key in record:
            parts.append(text.format(record[key]))
    if "code_perplexity" in record:
        parts.append(f"perplexity {record['code_perplexity']:.0f}")
    if "lr" in record:
        parts.append(f"lr {record['lr']:.1e}")
    parts.append(f"{record['images_per_second']:.0f} images/s")
    if "share_of_peak" in record:
        parts.append(f"{record['share_of_peak']:.0%} of matmul peak")
    return "  ".join(parts)
