"""Supervised finetuning: read this file first.

`finetune` goes from a backbone and labelled images to a classifier. It takes the weights, gives every block a bias
table of its own and puts a linear head on the mean of the patches; then it repeats one step - augment and mix images,
learn their mixed labels, layers near the pixels more slowly - and asks about the test images every so often. The loop
is that of `supervised.py`; with several workers each runs all of this on its share of every batch.

    mcbeit train finetune-base init=runs/mcbeit-base data.source=/data/imagenet
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.data import Batch, auto_workers
from mcbeit.epochs import Epoch, keep_predictions, take_note
from mcbeit.evaluation import Judgement, judge
from mcbeit.finetune_data import FinetuneImages, Judged, check_classes, divide, open_both
from mcbeit.finetune_setup import FinetuneConfig, Finetuning, augmented, build
from mcbeit.meter import StepResult
from mcbeit.optim import steps_per_epoch
from mcbeit.runfolder import RunFolder, open_run, writing
from mcbeit.sources.imagenet import Splits
from mcbeit.start import ready
from mcbeit.step import take_step
from mcbeit.supervised import SupervisedJob, learn
from mcbeit.worker import Worker


def finetune(
    config: FinetuneConfig, *, resume: bool = False, worker: Worker | None = None, splits: Splits | None = None
) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    `splits` are the labelled images, where they are not those that the config names. Raises ConfigError, DataError,
    WeightsError or RunError, before any work where it can be known, and Interrupted if it was asked to stop. Every
    process of a group calls it, each with its own `worker`.
    """
    with (worker or Worker()).at_work(config.run, threads=config.compute.threads) as (here, folder):
        return _finetune(config.model_copy(update={"run": folder}), splits, resume=resume, worker=here)


def _finetune(config: FinetuneConfig, splits: Splits | None, *, resume: bool, worker: Worker) -> dict[str, Any]:
    group = worker.group
    config = ready(config, worker)
    images = group.each(lambda: open_images(config, splits))
    per_epoch = group.each(lambda: steps_per_epoch(len(images.train), config.optim))
    run = group.first(lambda: _open(config, images, worker, resume=resume))
    if (summary := group.first(run.summary)) is not None:
        return summary
    return learn(FinetuneJob(build(config, images, worker), images), run, worker, per_epoch=per_epoch)


def open_images(config: FinetuneConfig, splits: Splits | None = None) -> FinetuneImages:
    """The images of a run. Raises DataError or ConfigError if they cannot be used."""
    train, test = open_both(config.data, config.eval) if splits is None else splits[:2]
    return divide(train, test, label_fraction=config.label_fraction, held_out=config.eval.held_out, seed=config.seed)


def _open(config: FinetuneConfig, images: FinetuneImages, worker: Worker, *, resume: bool) -> RunFolder:
    run = open_run(config, images.train, resume=resume, named=worker.named)
    check_classes(run.path, images, goes_on=bool(run.checkpoints.steps()))
    return run


class FinetuneJob(SupervisedJob):
    """What the loop asks of finetuning."""

    def __init__(self, parts: Finetuning, images: FinetuneImages) -> None:
        super().__init__(parts, images.train, images.test.source)
        self.parts, self.images = parts, images

    def describe(self, per_epoch: int) -> str:
        """See `SupervisedJob`."""
        optim = self.parts.config.optim
        return (
            f"{len(self.source)} images of {self.images.num_classes} classes, {per_epoch} steps per epoch, batch "
            f"{optim.batch_size}, lr {optim.lr:g}, layer decay {optim.layer_decay:g}, {self.setting()}"
        )

    def batches(self, steps: range) -> Iterable[Batch]:
        """See `SupervisedJob`."""
        num_dice = self.parts.model.backbone.num_dice
        return self.loader(augmented(self.parts.config, self.images, num_dice=num_dice), steps)

    def take_step(self, batch: Batch, lr: float, flags: Flags = NO_FLAGS) -> StepResult:
        """See `SupervisedJob`."""
        return train_step(self.parts, batch, lr, flags=flags)

    def judge(self, run: RunFolder, number: float) -> tuple[Epoch, bool]:
        """See `SupervisedJob`."""
        return judge_epoch(self.parts, self.images, run, number)


class Examples(NamedTuple):
    """Images with what the model should say of them."""

    images: Float[Tensor, "batch channel height width"]
    targets: Float[Tensor, "batch class"]  # probabilities
    dice: Float[Tensor, "batch die"]

    @property
    def num_rows(self) -> int:
        """The number of images."""
        return len(self.images)

    def split(self, num_parts: int) -> list["Examples"]:
        """In parts that are as equal as can be; no part is empty."""
        parts = zip(*(tensor.tensor_split(num_parts) for tensor in self), strict=True)
        return [part for part in (Examples(*tensors) for tensors in parts) if part.num_rows]


def train_step(parts: Finetuning, batch: Batch, lr: float, *, flags: Flags = NO_FLAGS) -> StepResult:
    """One optimiser step on this worker's share of a batch, in `optim.accumulate` parts.

    `flags` is what this worker has to say to the others.
    """
    optim = parts.config.optim
    parts.model.train()
    pieces = examples_of(parts, batch).split(optim.accumulate)
    result = take_step(
        parts.state, parts.network, parts.group, pieces, lambda piece: loss_of(parts, piece), optim, lr=lr, flags=flags
    )
    parts.state.update_teacher(parts.model, optim.ema_decay or 0.0)
    return result


def examples_of(parts: Finetuning, batch: Batch) -> Examples:
    """The batch on the device, mixed as the current step has it."""
    labels = parts.labels[batch.images].to(parts.device, non_blocking=True)
    batch = batch.to(parts.device)
    images, targets = parts.mixing(batch.views[0], labels, parts.state.step)
    return Examples(images, targets, batch.dice)


def loss_of(parts: Finetuning, examples: Examples) -> Float[Tensor, ""]:
    """The mean cross-entropy with the targets, in nats, in float32."""
    with parts.precision.autocast(parts.device):
        scores = parts.network(examples.images, examples.dice)
    return F.cross_entropy(scores, examples.targets)


def judge_epoch(parts: Finetuning, images: FinetuneImages, run: RunFolder, number: float) -> tuple[Epoch, bool]:
    """Ask the model as it is now about the test images and those that are held out, and keep what it says.

    Also returns whether it is the best so far. All workers must call it.
    """
    model, config, group = parts.judged_model(), parts.config, parts.group
    reading = {
        "batch_size": max(1, config.optim.batch_size // (group.size * config.optim.accumulate)),  # as in training
        "num_workers": auto_workers(config.data, sharing=group.local_size),
    }

    def ask(judged: Judged) -> Judgement:
        return judge(model, judged, config.preprocess, parts.precision, group=group, **reading)

    epoch = Epoch(number, ask(images.test), None if images.held_out is None else ask(images.held_out))
    is_best = take_note(parts.state.numbers, epoch)

    def keep() -> None:
        with writing("the predictions", run.path):
            keep_predictions(run.path, epoch, is_best=is_best)

    group.first(keep)
    return epoch, is_best
