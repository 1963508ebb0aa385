"""Pretraining by mc-BEiT: read this file first.

`pretrain` goes from images to a backbone: it opens the source, loads the frozen tokenizer, finds the temperature, and
then repeats one step - tokenize a crop, hide most of its patches, predict their codes. The loss is in `loss.py`, the
equations are in `targets.py`. With several workers each runs all of this on its share of every batch.

    mcbeit train mcbeit-tiny data.source=~/photos
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.augment import normalise
from mcbeit.data import Batch, Key, batch_keys, make_share_loader
from mcbeit.initial_weights import check_init
from mcbeit.loss import Codes
from mcbeit.masked import Prediction, measure, summarise
from mcbeit.meter import Meter, StepResult, is_due, status_line, target_warnings
from mcbeit.metric_log import MetricLog
from mcbeit.optim import crops_per_step, steps_per_epoch
from mcbeit.pretrain_setup import (
    PretrainConfig,
    Pretraining,
    build,
    first_run,
    tokenizer_input,
    view_dataset,
    with_model,
)
from mcbeit.probe import OnlineProbe
from mcbeit.runfolder import RunFolder, open_run
from mcbeit.sources import ImageSource, source_notes
from mcbeit.step import take_step
from mcbeit.tokenizer_plan import check_tokenizer, with_path
from mcbeit.vit import VisionTransformer
from mcbeit.watch import Watch
from mcbeit.worker import Worker


def pretrain(config: PretrainConfig, *, resume: bool = False, worker: Worker | None = None) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    Raises ConfigError, DataError or RunError, before any work where it can be known, and Interrupted if it was asked to
    stop. Every process of a group calls it, each with its own `worker`.
    """
    with (worker or Worker()).at_work(config.run, threads=config.compute.threads) as (here, folder):
        return _pretrain(config.model_copy(update={"run": folder}), resume=resume, worker=here)


def _pretrain(config: PretrainConfig, *, resume: bool, worker: Worker) -> dict[str, Any]:
    group = worker.group
    group.first(worker.fetch)
    config = group.each(lambda: with_model(config))
    source = group.each(config.data.open)
    per_epoch = group.each(lambda: steps_per_epoch(len(source), config.optim, config.data.masks_per_image))
    total = config.optim.total_steps(per_epoch)
    probe = group.each(lambda: _probe(config))
    group.first(lambda: _check(config, source))
    run = group.first(lambda: open_run(config, source, resume=resume, named=worker.named))
    if (summary := group.first(run.summary)) is not None:
        return summary
    parts = build(config, source, worker)
    state = parts.state
    warnings = [*source_notes(source), *run.go_on(state, group)]
    watch = Watch(
        run,
        source,
        state,
        worker,
        data=config.data,
        max_skipped=config.optim.max_skipped_steps,
        keys_of=lambda step: next(keys(parts, source, range(step, step + 1))),
        can_replay=True,
    )
    meter = Meter.of_group(group, parts.device, parts.precision.dtype, flops_per_image=parts.cost.total)
    worker.began(state.step)

    with worker.display("pretrain", total, done=state.step) as display, MetricLog(run, config.log, group) as log:
        display.tell([describe(parts, source, per_epoch), *state.numbers.get("init", ())], warnings)
        for batch in batches(parts, source, range(state.step, total)):
            step, lr = state.step, config.optim.lr_at(state.step, per_epoch)
            is_logged = step % config.log.every_steps == 0 or step == total - 1
            flags = watch.flags(batch)
            result = train_step(parts, batch.to(parts.device), lr, measured=is_logged, flags=flags)
            meter.count(result, num_images=config.optim.batch_size)
            is_saved = is_due(config.checkpoint.every_epochs, per_epoch, state.step, total)
            is_probed = probe is not None and is_due(config.eval.every_epochs, per_epoch, state.step, total)
            watch.hear(step, result, display, up_to_now=is_logged or is_saved or is_probed)

            record: dict[str, float] = {"step": step, "epoch": state.step / per_epoch}
            if is_logged:
                record |= {"lr": lr, **meter.read(), "corrupt": watch.num_corrupt}
                for warning in target_warnings(record, parts.tokenizer.vocab_size, hard=config.objective.hard):
                    display.warn(warning)
            with meter.paused():
                is_best = False
                if probe is not None and is_probed:
                    record["knn_top1"], is_best = judge(parts, probe, run)
                    display.note(
                        f"epoch {record['epoch']:.3g}: kNN top-1 {record['knn_top1']:.4f} on {probe.asked_of}"
                        + (f", {probe.num_skipped} unreadable ones left out" if probe.num_skipped else "")
                    )
                if len(record) > 2:
                    log.write(record)
                if is_best or is_saved:
                    watch.save()
                if is_best:
                    watch.mark_best("knn_top1", record["knn_top1"])
            display.advance(status_line(record) if is_logged else None)
            watch.stop_if_asked(config.run)
        watch.tell_corrupt(display)
    summary = group.first(lambda: run.finish(state.numbers))
    group.first(worker.keep)
    return summary


def _probe(config: PretrainConfig) -> OnlineProbe | None:
    if not config.eval.names_labels:
        return None
    return OnlineProbe(config.eval, config.data, config.preprocess, config.seed)


def _check(config: PretrainConfig, source: ImageSource) -> None:
    """Raise an error now if the tokenizer or the initial weights would not fit."""
    check_init(config.init, Path(config.run), config.model, config.data.channels)
    choice = with_path(config.tokenizer, Path(config.run))
    check_tokenizer(choice, first_run(config, len(source)), config.grid, config.objective, config.data.channels)


def judge(parts: Pretraining, probe: OnlineProbe, run: RunFolder) -> tuple[float, bool]:
    """The k-NN accuracy of the backbone as it is now, and whether it is the best so far; done by the first worker."""
    backbone = parts.whole_backbone()

    def ask() -> tuple[float, bool]:
        accuracy = probe.knn(backbone, parts.precision)
        return accuracy, run.checkpoints.is_best("knn_top1", accuracy)

    return parts.group.first(ask)


def keys(parts: Pretraining, source: ImageSource, steps: range) -> Iterator[list[Key]]:
    """What the batches of some steps are made of, over all workers."""
    crops = crops_per_step(parts.config.optim, parts.config.data.masks_per_image)
    return batch_keys(len(source), crops, parts.config.seed, steps)


def batches(parts: Pretraining, source: ImageSource, steps: range) -> Iterable[Batch]:
    """This worker's share of the batches of some steps, read ahead by loader processes."""
    config, pin = parts.config, parts.device.type == "cuda"
    crops = crops_per_step(config.optim, config.data.masks_per_image)
    dataset = view_dataset(config, source, parts.tokenizer, num_dice=parts.model.backbone.num_dice)
    return make_share_loader(dataset, keys(parts, source, steps), crops, config.data, parts.group, pin=pin)


def train_step(parts: Pretraining, batch: Batch, lr: float, *, measured: bool, flags: Flags = NO_FLAGS) -> StepResult:
    """One optimiser step on this worker's share of a batch, in `optim.accumulate` parts.

    `measured` adds what a log line needs, `flags` is what this worker has to say to the others.
    """
    config, measurements = parts.config, list[dict[str, Tensor]]()

    def loss_of(piece: Batch) -> Tensor:
        prediction, codes = predict(parts, piece)
        if measured:
            measurements.append(measure(parts.model, prediction, codes, piece.patch_ids))
        return prediction.loss

    parts.model.train()
    pieces = split(batch, config.optim.accumulate)
    result = take_step(parts.state, parts.network, parts.group, pieces, loss_of, config.optim, lr=lr, flags=flags)
    parts.state.update_teacher(parts.model.backbone, config.objective.ema_decay)
    return result._replace(measurements=summarise(measurements, parts.group)) if measured else result


def predict(parts: Pretraining, batch: Batch) -> tuple[Prediction, Codes]:
    """Tokenize, hide, predict: the loss of a batch, and the codes that were to be predicted."""
    config = parts.config
    images = normalise(batch.views[0], config.preprocess.mean, config.preprocess.std)
    with torch.no_grad():
        logits = parts.tokenizer.code_logits(tokenizer_input(parts.tokenizer, batch, parts.tokenizer_dtype))
    codes = Codes(logits, parts.temperature, config.objective.hard, repeats=config.data.masks_per_image)
    with parts.precision.autocast(parts.device):
        taught = teacher_features(parts.state.teacher, images, codes.repeats)
        images = images.repeat_interleave(codes.repeats, dim=0)
        return parts.network(images, batch.masks, batch.patch_ids, codes, taught, batch.dice), codes


@torch.no_grad()
def teacher_features(teacher: nn.Module | None, images: Tensor, repeats: int) -> Tensor | None:
    """The teacher's patch tokens of the full images, once per mask; None without a teacher."""
    if teacher is None:
        return None
    assert isinstance(teacher, VisionTransformer)
    return teacher.forward_tokens(images)[:, 1:].repeat_interleave(repeats, dim=0)


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """The batch in parts that are as equal as its images allow."""
    num_images = len(batch.images)
    sizes = [len(part) for part in torch.arange(num_images).tensor_split(num_parts) if len(part)]
    masks_per_image = len(batch.masks) // num_images
    rows = [size * masks_per_image for size in sizes]
    columns = [batch.masks.split(rows), batch.patch_ids.split(rows), batch.dice.split(rows), batch.images.split(sizes)]
    views = [view.split(sizes) for view in batch.views]
    return [
        Batch(numbers, [view[i] for view in views], masks, patch_ids, dice, batch.corrupt)
        for i, (masks, patch_ids, dice, numbers) in enumerate(zip(*columns, strict=True))
    ]


def describe(parts: Pretraining, source: ImageSource, per_epoch: int) -> str:
    """One line about the run: what is trained on what, and where."""
    parameters = sum(p.numel() for p in parts.model.parameters())
    workers = f"{parts.group.size} workers, " if parts.group.size > 1 else ""
    return (
        f"{len(source)} images, {per_epoch} steps per epoch, batch {parts.config.optim.batch_size}, "
        f"lr {parts.config.optim.lr:g}, {parameters / 1e6:.1f} M parameters, {parts.tokenizer.vocab_size} codes, "
        f"temperature {parts.temperature:.4g}, {parts.cost.total / 1e9:.3g} GFLOP per image, "
        f"{workers}{parts.precision.name} on {parts.device}"
    )
