"""The loop that all learning from labels shares: finetuning, segmentation, detection.

A job says what a batch is, how it is learned from and how the model is judged; the loop keeps the pace: rates, log
lines, checkpoints, stops, and the best epoch beside the last one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from torch import nn

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.checkpoint import CheckpointFolder
from mcbeit.config import Config
from mcbeit.data import Batch, DataConfig, Key, ViewDataset, batch_keys, make_share_loader
from mcbeit.device import ComputeConfig, Precision, choose_device
from mcbeit.errors import RunError
from mcbeit.group import Group
from mcbeit.meter import Meter, StepResult, is_due, status_line
from mcbeit.metric_log import MetricLog
from mcbeit.optim import OptimConfig, crops_per_step
from mcbeit.runfolder import RunConfig, RunFolder
from mcbeit.sources import ImageSource, source_notes
from mcbeit.state import TrainingState
from mcbeit.watch import Watch
from mcbeit.worker import Worker


class EvalConfig(Config):
    """When a run is judged."""

    every_epochs: float = Field(1.0, gt=0)  # and at the end


class SupervisedConfig(RunConfig):
    """What every job has that learns from labels."""

    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    eval: EvalConfig = EvalConfig()


@runtime_checkable
class JudgedEpoch(Protocol):
    """A model after some epochs, judged."""

    @property
    def number(self) -> float:
        """How many epochs."""
        ...

    @property
    def criterion(self) -> tuple[str, float]:
        """The metric that the best epoch is chosen by, and its value; more is better."""
        ...

    @property
    def selection(self) -> str:
        """By what the best epoch is chosen, in words."""
        ...

    def record(self) -> dict[str, float]:
        """For a line of measurements."""
        ...

    def describe(self) -> str:
        """For a person."""
        ...


@runtime_checkable
class Parts(Protocol):
    """What a job is built of before step 0."""

    @property
    def config(self) -> SupervisedConfig:
        """What was asked for."""
        ...

    @property
    def group(self) -> Group:
        """The workers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        ...

    @property
    def precision(self) -> Precision:
        """In which numbers."""
        ...

    @property
    def state(self) -> TrainingState:
        """What learning changes."""
        ...

    @property
    def flops_per_image(self) -> float:
        """Of a step."""
        ...


class SupervisedJob(ABC):
    """A job as it is before step 0, of images to learn from and of others to be judged by."""

    def __init__(self, parts: Parts, source: ImageSource, test: ImageSource) -> None:
        self.config, self.source, self.state = parts.config, source, parts.state
        self.group, self.device, self.precision = parts.group, parts.device, parts.precision
        self.flops_per_image = parts.flops_per_image
        # what a person should know of the images
        self.notes = [*source_notes(source), *(f"test images: {note}" for note in source_notes(test))]

    @abstractmethod
    def describe(self, per_epoch: int) -> str:
        """One line about the run: what is trained on what, and where."""

    @abstractmethod
    def batches(self, steps: range) -> Iterable[Batch]:
        """This worker's share of the batches of some steps."""

    @abstractmethod
    def take_step(self, batch: Batch, lr: float, flags: Flags = NO_FLAGS) -> StepResult:
        """Learn from this worker's share of a batch; `flags` is what it has to say to the others."""

    @abstractmethod
    def judge(self, run: RunFolder, number: float) -> tuple[JudgedEpoch, bool]:
        """Measure the model after `number` epochs and keep what it said; also whether it is the best so far.

        All workers must call it.
        """

    def keys(self, steps: range) -> Iterator[list[Key]]:
        """What the batches of some steps are made of, over all workers."""
        return batch_keys(len(self.source), self.config.optim.batch_size, self.config.seed, steps)

    def loader(self, dataset: ViewDataset, steps: range) -> Iterable[Batch]:
        """A data set's share of the batches, read ahead by loader processes."""
        crops, pin = crops_per_step(self.config.optim, masks_per_image=1), self.device.type == "cuda"
        return make_share_loader(dataset, self.keys(steps), crops, self.config.data, self.group, pin=pin)

    def norm_notes(self) -> list[str]:
        """What a person should know if the model has batch norms."""
        parts = self.config.optim.num_parts
        split = f"optim.accumulate={parts}: batch norm sees a {parts}th of a batch at once, which is another recipe"
        if self.group.size == 1 or self.device.type == "cuda":
            return [split] if parts > 1 else []
        own = "batch norm sees each worker's own images: its sums are shared on GPUs only"
        return [own, split] if parts > 1 else [own]

    def setting(self) -> str:
        """The end of `describe`: how large the model is, what a step costs, and where it is computed."""
        parameters, group = sum(p.numel() for p in self.state.model.parameters()), self.group
        workers = f"{group.size} workers, " if group.size > 1 else ""
        return (
            f"{parameters / 1e6:.1f} M parameters, {self.flops_per_image / 1e9:.3g} GFLOP per image, "
            f"{workers}{self.precision.name} on {self.device}"
        )


M = TypeVar("M", bound=nn.Module)


def as_trained(model: M, run: Path) -> M:
    """The model with the numbers of the newest checkpoint of a run, in evaluation mode. Raises RunError without one."""
    checkpoint = CheckpointFolder(run / "checkpoints").newest()
    if checkpoint is None:
        raise RunError(f"the run '{run}' has no checkpoint; go on with: mcbeit train {run / 'config.yaml'} --resume")
    model.load_state_dict(checkpoint.tensors["model"])
    return model.to(choose_device()).eval()


def learn(job: SupervisedJob, run: RunFolder, worker: Worker, *, per_epoch: int) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary. Every process of a group calls it with its `worker`.

    Raises DataError, RunError, and Interrupted if it was asked to stop.
    """
    config, state, group = job.config, job.state, worker.group
    total = config.optim.total_steps(per_epoch)
    warnings = [*job.notes, *run.go_on(state, group)]
    watch = Watch(
        run,
        job.source,
        state,
        worker,
        data=config.data,
        max_skipped=config.optim.max_skipped_steps,
        keys_of=lambda step: next(job.keys(range(step, step + 1))),
    )
    meter = Meter.of_group(group, job.device, job.precision.dtype, flops_per_image=job.flops_per_image)
    worker.began(state.step)

    with worker.display(config.job, total, done=state.step) as display, MetricLog(run, config.log, group) as log:
        display.tell([job.describe(per_epoch), *state.numbers.get("init", ())], warnings)
        for batch in job.batches(range(state.step, total)):
            step, lr = state.step, config.optim.lr_at(state.step, per_epoch)
            result = job.take_step(batch, lr, watch.flags(batch))
            meter.count(result, num_images=config.optim.batch_size)
            is_logged = step % config.log.every_steps == 0 or state.step == total
            is_saved = is_due(config.checkpoint.every_epochs, per_epoch, state.step, total)
            is_judged = is_due(config.eval.every_epochs, per_epoch, state.step, total)
            watch.hear(step, result, display, up_to_now=is_logged or is_saved or is_judged)

            record: dict[str, float] = {"step": step, "epoch": state.step / per_epoch}
            if is_logged:
                record |= {"lr": lr, **meter.read(), "corrupt": watch.num_corrupt}
            with meter.paused():
                is_best = False
                if is_judged:
                    epoch, is_best = job.judge(run, record["epoch"])
                    record |= epoch.record()
                    display.note(epoch.describe())
                if len(record) > 2:
                    log.write(record)
                if is_best or is_saved:
                    watch.save()
                if is_best:
                    watch.mark_best(*epoch.criterion)
            display.advance(status_line(record) if is_logged else None)
            watch.stop_if_asked(config.run)
        watch.tell_corrupt(display)
    summary = group.first(lambda: run.finish(state.numbers))
    group.first(worker.keep)
    return summary
