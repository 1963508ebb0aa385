"""Pretraining by mc-BEiT: read this file first.

`pretrain` goes from images to a backbone: it opens the source, loads the frozen tokenizer, finds the temperature, and
then repeats one step - tokenize a crop, hide most of its patches, predict their codes. The loss is in `loss.py`, the
equations are in `targets.py`.

    mcbeit train mcbeit-tiny data.source=~/photos
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from mcbeit.augment import CropConfig, View, normalise
from mcbeit.config import UserPath
from mcbeit.cost import Cost, estimate, tokenizer_flops
from mcbeit.data import (
    Batch,
    CorruptImages,
    DataConfig,
    ViewDataset,
    auto_workers,
    batch_keys,
    check_readable,
    make_loader,
)
from mcbeit.device import ComputeConfig, Precision, choose_device, choose_precision, matmul_peak, thread_limit
from mcbeit.errors import ConfigError
from mcbeit.loss import Codes
from mcbeit.masked import MaskedImageModel, ObjectiveConfig, measure, summarise
from mcbeit.masking import MaskConfig, num_masked
from mcbeit.meter import Meter, StepResult, check_finite, is_due, status_line, target_warnings
from mcbeit.optim import OptimConfig, crops_per_step, make_optimizer, steps_per_epoch
from mcbeit.preprocess import COLOURS, Preprocess
from mcbeit.probe import EvalConfig, OnlineProbe
from mcbeit.progress import Display
from mcbeit.runfolder import MetricLog, RunConfig, open_run
from mcbeit.sources import ImageSource, source_notes
from mcbeit.state import TrainingState
from mcbeit.tokenizer import Tokenizer
from mcbeit.tokenizer_choice import TokenizerChoice, choose_temperature, logits_of, low_precision
from mcbeit.tokenizer_plan import check_tokenizer, get_tokenizer, tokenizer_run, with_path
from mcbeit.tokenizer_training import TokenizerConfig
from mcbeit.vit import ModelConfig, VisionTransformer

NUM_CALIBRATED = 64  # images that the temperature is chosen on


class PretrainConfig(RunConfig):
    """Everything about a pretraining run."""

    job: Literal["pretrain"] = "pretrain"
    run: UserPath = "runs/pretrain"
    data: DataConfig = DataConfig()
    preprocess: Preprocess = Preprocess()  # of the image view, in training and afterwards
    crop: CropConfig = CropConfig()
    mask: MaskConfig = MaskConfig()
    tokenizer: TokenizerChoice = TokenizerChoice()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    compute: ComputeConfig = ComputeConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _channels_fit(self) -> "PretrainConfig":
        self.data.check_channels(self.preprocess.mean, section="preprocess", crop=self.crop)
        if self.tokenizer.kind == "vqgan" and self.data.channels != COLOURS:
            raise ValueError(
                f"tokenizer.kind=vqgan is for colours, data.channels is {self.data.channels}; train a tokenizer on "
                "these images: tokenizer.kind=dvae tokenizer.preset=photo-tokenizer"
            )
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row. Raises ConfigError unless the image is a whole number of patches, at least 2."""
        size, patch = self.preprocess.image_size, self.model.patch_size
        if size % patch:
            raise ConfigError(f"preprocess.image_size={size} must be a multiple of model.patch_size={patch}")
        if size == patch:
            raise ConfigError(
                f"preprocess.image_size={size} is one patch of model.patch_size={patch}: it hides all or nothing"
            )
        return size // patch, size // patch


@dataclass
class Pretraining:
    """What a step needs: the parts that learn (`state`) and the parts that do not."""

    config: PretrainConfig
    device: torch.device
    precision: Precision
    tokenizer: Tokenizer
    tokenizer_dtype: torch.dtype
    model: MaskedImageModel
    state: TrainingState
    cost: Cost

    @property
    def temperature(self) -> float:
        """tau of equation (1), fixed for the whole run."""
        return float(self.state.numbers["temperature"])


def pretrain(config: PretrainConfig, *, resume: bool = False) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    Raises ConfigError, DataError or RunError, before any work where it can be known.
    """
    with thread_limit(config.compute.threads):
        return _pretrain(config, resume=resume)


def _pretrain(config: PretrainConfig, *, resume: bool) -> dict[str, Any]:
    source = config.data.open()
    per_epoch = steps_per_epoch(len(source), config.optim, config.data.masks_per_image)
    total = config.optim.total_steps(per_epoch)
    probe = OnlineProbe(config.eval, config.data, config.preprocess, config.seed) if config.eval.names_labels else None
    first = first_run(config, len(source))
    check_tokenizer(
        with_path(config.tokenizer, Path(config.run)), first, config.grid, config.objective, config.data.channels
    )
    run = open_run(config, source, resume=resume)
    if (summary := run.summary()) is not None:
        return summary
    parts = build(config, source)
    state = parts.state
    corrupt = CorruptImages(source, run.corrupt_file, max_fraction=config.data.max_corrupt_fraction)
    meter = Meter(parts.device, flops_per_image=parts.cost.total, peak=matmul_peak(parts.device, parts.precision.dtype))

    warnings = [*source_notes(source), *run.go_on(state)]

    with Display("pretrain", total, done=state.step) as display, MetricLog(run, config.log) as log:
        display.note(describe(parts, source, per_epoch))
        for warning in warnings:
            display.warn(warning)
        for batch in batches(parts, source, range(state.step, total)):
            corrupt.add(batch)
            is_logged = state.step % config.log.every_steps == 0 or state.step == total - 1
            lr = config.optim.lr_at(state.step, per_epoch)
            result = train_step(parts, batch.to(parts.device), lr, measured=is_logged)
            meter.count(result, num_images=config.optim.batch_size)
            is_saved = is_due(config.checkpoint.every_epochs, per_epoch, state.step, total)
            is_probed = probe is not None and is_due(config.eval.every_epochs, per_epoch, state.step, total)
            if is_logged or is_saved or is_probed:
                check_finite(result, state.step - 1, scaled=state.scaler.is_enabled())

            record: dict[str, float] = {"step": state.step - 1, "epoch": state.step / per_epoch}
            if is_logged:
                record |= {"lr": lr, **meter.read(), "corrupt": len(corrupt)}
                for warning in target_warnings(record, parts.tokenizer.vocab_size, hard=config.objective.hard):
                    display.warn(warning)
            with meter.paused():
                is_best = False
                if probe is not None and is_probed:
                    record["knn_top1"] = probe.knn(parts.model.backbone, parts.precision)
                    is_best = run.checkpoints.is_best("knn_top1", record["knn_top1"])
                    display.note(
                        f"epoch {record['epoch']:.3g}: kNN top-1 {record['knn_top1']:.4f} on {probe.asked_of}"
                        + (f", {probe.num_skipped} unreadable ones left out" if probe.num_skipped else "")
                    )
                if len(record) > 2:
                    log.write(record)
                if is_best or is_saved:
                    run.checkpoints.save(state.checkpoint())
                if is_best:
                    run.checkpoints.mark_best(state.step, "knn_top1", record["knn_top1"])
            display.advance(status_line(record) if is_logged else None)
        if len(corrupt):
            display.note(corrupt.describe())
    return run.finish(state.numbers)


def build(config: PretrainConfig, source: ImageSource) -> Pretraining:
    """Everything that a run needs, as it is before step 0."""
    device = choose_device()
    precision = choose_precision(config.compute.precision, device)
    choice = with_path(config.tokenizer, Path(config.run))
    tokenizer = get_tokenizer(choice, first_run(config, len(source)), config.grid, config.data.channels).to(device)
    torch.manual_seed(config.seed)
    backbone = VisionTransformer(config.model, image_size=config.preprocess.image_size, channels=config.data.channels)
    backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    model = MaskedImageModel(backbone, tokenizer.vocab_size, config.objective).to(device)
    optimizer = make_optimizer([model], config.optim)
    state = TrainingState.start(
        model, optimizer, precision, teacher_of=backbone if config.objective.has_teacher else None
    )

    view = some_tokenizer_views(config, source, tokenizer).to(device)
    tokenizer, agreement = low_precision(tokenizer, view, precision.dtype, config.tokenizer.min_agreement)
    dtype = next(tokenizer.parameters()).dtype
    state.numbers["temperature"] = choose_temperature(tokenizer, logits_of(tokenizer, view), config.objective)
    state.numbers["tokenizer_agreement"] = agreement
    if config.compute.compile:
        model.compile()
    return Pretraining(config, device, precision, tokenizer, dtype, model, state, estimate_cost(config, tokenizer))


def first_run(config: PretrainConfig, num_images: int | None = None) -> TokenizerConfig | None:
    """The run that has to train the tokenizer first, if there is one."""
    choice = with_path(config.tokenizer, Path(config.run))
    return tokenizer_run(choice, config.data, config.preprocess, seed=config.seed, num_images=num_images)


def estimate_cost(config: PretrainConfig, tokenizer: Tokenizer) -> Cost:
    """FLOPs per image and mask."""
    dim, depth, _ = config.model.shape
    return estimate(
        num_patches=config.grid[0] * config.grid[1],
        patch_size=config.model.patch_size,
        dim=dim,
        depth=depth,
        num_masked=num_masked(config.grid, config.mask.ratio),
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer_flops(tokenizer, tokenizer.view_size(config.grid)),
        masks_per_image=config.data.masks_per_image,
        has_teacher=config.objective.has_teacher,
        channels=config.data.channels,
    )


def view_dataset(config: PretrainConfig, source: ImageSource, tokenizer: Tokenizer) -> ViewDataset:
    """The images as the image view, the tokenizer's view, and masks."""
    return ViewDataset(
        source,
        seed=config.seed,
        crop=config.crop,
        views=(
            View(config.preprocess.image_size, config.preprocess.interpolation),
            View(tokenizer.view_size(config.grid), config.tokenizer.interpolation),
        ),
        grid=config.grid,
        mask=config.mask,
        masks_per_image=config.data.masks_per_image,
    )


def batches(parts: Pretraining, source: ImageSource, steps: range) -> Iterable[Batch]:
    """The batches of some steps, read ahead by loader processes."""
    config = parts.config
    crops = crops_per_step(config.optim, config.data.masks_per_image)
    keys = batch_keys(len(source), crops, config.seed, steps)
    dataset = view_dataset(config, source, parts.tokenizer)
    return make_loader(dataset, keys, crops, num_workers=auto_workers(config.data), pin=parts.device.type == "cuda")


def some_tokenizer_views(config: PretrainConfig, source: ImageSource, tokenizer: Tokenizer) -> Tensor:
    """The tokenizer's views of some images of the run: what its temperature is chosen on."""
    crops = min(NUM_CALIBRATED, len(source))
    keys = batch_keys(len(source), crops, config.seed, range(1))
    (batch,) = make_loader(view_dataset(config, source, tokenizer), keys, crops, num_workers=0, pin=False)
    return tokenizer_input(tokenizer, check_readable(batch, source), torch.float32)


def tokenizer_input(
    tokenizer: Tokenizer, batch: Batch, dtype: torch.dtype
) -> Float[Tensor, "batch channel height width"]:
    """The tokenizer's view, normalised its way, in the memory format that its convolutions like."""
    return normalise(batch.views[1], tokenizer.mean, tokenizer.std, dtype).contiguous(memory_format=torch.channels_last)


def train_step(parts: Pretraining, batch: Batch, lr: float, *, measured: bool) -> StepResult:
    """One optimiser step on a batch, in `optim.accumulate` parts; `measured` adds what a log line needs."""
    config, state, model = parts.config, parts.state, parts.model
    model.train()
    loss = torch.zeros((), device=parts.device)
    measurements: list[dict[str, Tensor]] = []
    for part in split(batch, config.optim.accumulate):
        images = normalise(part.views[0], config.preprocess.mean, config.preprocess.std)
        with torch.no_grad():
            logits = parts.tokenizer.code_logits(tokenizer_input(parts.tokenizer, part, parts.tokenizer_dtype))
        codes = Codes(logits, parts.temperature, config.objective.hard, repeats=config.data.masks_per_image)
        with parts.precision.autocast(parts.device):
            taught = teacher_features(state.teacher, images, codes.repeats)
            images = images.repeat_interleave(codes.repeats, dim=0)
            prediction = model(images, part.masks, part.patch_ids, codes, taught)
        if measured:
            measurements.append(measure(model, prediction, codes, part.patch_ids))
        state.scaler.scale(prediction.loss / config.optim.accumulate).backward()
        loss += prediction.loss.detach() / config.optim.accumulate
    norm = state.apply_gradients(lr, config.optim.clip_grad)
    state.update_teacher(model.backbone, config.objective.ema_decay)
    return StepResult(loss, norm, summarise(measurements) if measured else {})


@torch.no_grad()
def teacher_features(teacher: nn.Module | None, images: Tensor, repeats: int) -> Tensor | None:
    """The teacher's patch tokens of the full images, once per mask; None without a teacher."""
    if teacher is None:
        return None
    assert isinstance(teacher, VisionTransformer)
    return teacher.forward_tokens(images)[:, 1:].repeat_interleave(repeats, dim=0)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """The batch in equal parts."""
    columns = [batch.masks.chunk(parts), batch.patch_ids.chunk(parts), batch.images.chunk(parts)]
    views = [view.chunk(parts) for view in batch.views]
    for i, (masks, patch_ids, numbers) in enumerate(zip(*columns, strict=True)):
        yield Batch(numbers, [view[i] for view in views], masks, patch_ids, batch.corrupt)


def describe(parts: Pretraining, source: ImageSource, per_epoch: int) -> str:
    """One line about the run: what is trained on what, and where."""
    parameters = sum(p.numel() for p in parts.model.parameters())
    return (
        f"{len(source)} images, {per_epoch} steps per epoch, batch {parts.config.optim.batch_size}, "
        f"lr {parts.config.optim.lr:g}, {parameters / 1e6:.1f} M parameters, {parts.tokenizer.vocab_size} codes, "
        f"temperature {parts.temperature:.4g}, {parts.cost.total / 1e9:.3g} GFLOP per image, "
        f"{parts.precision.name} on {parts.device}"
    )
