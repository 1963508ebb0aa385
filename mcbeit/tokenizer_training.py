"""Training our own tokenizer: a discrete VAE with a codebook that is used.

Codes are relaxed by the Gumbel-softmax while training. Two things keep the codebook in use: the mean distribution over
a batch is pulled towards uniform, and codes that were the best of no patch for a while are made copies of busy ones.
"""

import contextlib
import io
import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from mcbeit.agreement import NO_FLAGS, Flags, agree
from mcbeit.atomic import write_bytes
from mcbeit.augment import CropConfig, normalise
from mcbeit.config import Config, UserPath
from mcbeit.data import (
    DataConfig,
    ViewDataset,
    batch_keys,
    check_readable,
    make_loader,
)
from mcbeit.device import ComputeConfig, Precision, choose_device, choose_precision
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import ConfigError, RunError
from mcbeit.group import ALONE
from mcbeit.image_files import COLOURS
from mcbeit.meter import Meter, StepResult, is_due, status_line
from mcbeit.metric_log import MetricLog
from mcbeit.multichannel import false_colours
from mcbeit.optim import OptimConfig, make_optimizer, steps_per_epoch
from mcbeit.preprocess import Interpolation
from mcbeit.runfolder import RunConfig, open_run
from mcbeit.sources import source_notes
from mcbeit.state import TrainingState
from mcbeit.targets import entropy
from mcbeit.tokenizer import count_codes, perplexity
from mcbeit.tokenizer_choice import SLICE, calibrate_temperature, logits_of
from mcbeit.tokenizer_data import crop_dataset, crop_keys, crop_loader
from mcbeit.watch import Watch
from mcbeit.worker import Worker

DEFAULT_PERPLEXITY = 4.0  # choices per patch at the temperature that is stored with the tokenizer
NUM_JUDGED = 512  # images that a finished tokenizer is judged on
NUM_CALIBRATED = 64  # of them, whose logits are kept for its temperature


class CodebookConfig(Config):
    """How codes are relaxed and kept in use."""

    start_temperature: float = Field(1.0, gt=0)  # of the Gumbel-softmax
    end_temperature: float = Field(0.1, gt=0)
    uniform_weight: float = Field(0.02, ge=0)  # of KL(mean code distribution of the batch || uniform), in nats
    revive_every_steps: int = Field(100, ge=1)  # codes unused for so long become copies of busy ones
    revive_until: float = Field(0.8, ge=0, le=1)  # share of the run after which no code is revived


class TokenizerConfig(RunConfig):
    """Everything about a tokenizer run."""

    job: Literal["tokenizer"] = "tokenizer"
    run: UserPath = "runs/tokenizer"
    data: DataConfig = DataConfig()
    image_size: int = Field(112, ge=1)  # pixels of the crops that it is trained on
    interpolation: Interpolation = "lanczos"
    crop: CropConfig = CropConfig()
    model: DiscreteVAEConfig = DiscreteVAEConfig()
    codebook: CodebookConfig = CodebookConfig()
    optim: OptimConfig = OptimConfig(
        epochs=1, warmup_epochs=0.05, batch_size=64, lr=1e-3, betas=(0.9, 0.99), weight_decay=0
    )
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "TokenizerConfig":
        self.data.check_channels(self.model.mean, section="model", crop=self.crop)
        unread = unread_options(self.data, self.compute)
        if self.optim.accumulate != 1:
            unread.append("optim.accumulate")
        if unread:
            raise ValueError(
                f"{', '.join(unread)}: for pretraining only; a tokenizer run does not have it, so leave it out"
            )
        return self


def unread_options(data: DataConfig, compute: ComputeConfig) -> list[str]:
    """The options that are set although only pretraining reads them."""
    is_set = {
        "data.masks_per_image": data.masks_per_image != 1,
        "compute.compile": compute.compile,
        "compute.gradient_checkpointing": compute.gradient_checkpointing,
    }
    return [name for name, found in is_set.items() if found]


def check_size(config: TokenizerConfig) -> None:
    """Raise ConfigError unless the images are a whole number of codes."""
    if config.image_size % config.model.stride:
        raise ConfigError(f"image_size={config.image_size} must be a multiple of model.stride={config.model.stride}")


def train_tokenizer(config: TokenizerConfig, *, resume: bool = False, worker: Worker | None = None) -> dict[str, Any]:
    """Start or resume a tokenizer run and finish it; returns its summary, which is also RUN/summary.json.

    Raises ConfigError, DataError or RunError, before any work where it can be known, and Interrupted if it was asked to
    stop. It is the work of one process.
    """
    with (worker or Worker()).at_work(config.run, threads=config.compute.threads) as (here, folder):
        return _train(config.model_copy(update={"run": folder}), resume=resume, worker=here)


def _train(config: TokenizerConfig, *, resume: bool, worker: Worker) -> dict[str, Any]:
    check_size(config)
    if worker.group.size > 1:
        raise ConfigError(f"a tokenizer is trained by one worker, found {worker.group.size}; use --workers 1")
    worker.fetch()
    source = config.data.open()
    per_epoch = steps_per_epoch(len(source), config.optim)
    total = config.optim.total_steps(per_epoch)
    run = open_run(config, source, resume=resume, named=worker.named)
    if (summary := run.summary()) is not None:
        return summary
    device = choose_device()
    precision = choose_precision(config.compute.precision, device)
    torch.manual_seed(config.seed)
    model = DiscreteVAE(config.model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainingState.start(model, make_optimizer([model], config.optim), precision, teacher_of=None)
    state.numbers |= {
        "kind": "dvae",
        "tokenizer": config.model.model_dump(mode="json"),
        "interpolation": config.interpolation,
    }
    warnings = [*source_notes(source), *run.go_on(state)]
    dataset = crop_dataset(config, source)
    watch = Watch(
        run,
        source,
        state,
        worker,
        data=config.data,
        max_skipped=config.optim.max_skipped_steps,
        keys_of=lambda step: next(crop_keys(config, source, range(step, step + 1))),
    )
    meter = Meter(device)
    use = torch.tensor(state.numbers.get("use", [0.0] * model.vocab_size), device=device)  # since the last revival

    worker.began(state.step)

    with worker.display("tokenizer", total, done=state.step) as display, MetricLog(run, config.log) as log:
        display.note(f"{len(source)} images, {total} steps, {model.vocab_size} codes, {precision.name} on {device}")
        for warning in warnings:
            display.warn(warning)
        for batch in crop_loader(config, dataset, range(state.step, total), device):
            flags = watch.flags(batch)
            step, lr = state.step, config.optim.lr_at(state.step, per_epoch)
            images = model_input(model, batch.to(device).views[0])
            result, counts = train_step(
                state, images, config, lr=lr, progress=step / total, precision=precision, flags=flags
            )
            use += counts
            is_logged = step % config.log.every_steps == 0 or state.step == total
            meter.count(result, num_images=config.optim.batch_size)
            is_saved = is_due(config.checkpoint.every_epochs, per_epoch, state.step, total)
            watch.hear(step, result, display, up_to_now=is_logged or is_saved)
            if state.step % config.codebook.revive_every_steps == 0:
                if state.step <= config.codebook.revive_until * total:
                    revive_dead_codes(model, use, config.seed + step)
                use.zero_()
            if is_logged:
                record = {
                    "step": step,
                    "epoch": state.step / per_epoch,
                    "lr": lr,
                    **meter.read(),
                    "code_perplexity": perplexity(counts),
                    "codes_used": float((counts > 0).sum()),
                    "corrupt": watch.num_corrupt,
                }
                log.write(record)
            with meter.paused():
                if state.step == total:
                    state.numbers |= judge(model, dataset, config, device, unused_epoch=state.step // per_epoch + 1)
                    if "temperature" not in state.numbers:
                        display.warn("the codes have collapsed: no temperature gives patches several choices")
                if is_saved or watch.wants_stop:
                    state.numbers["use"] = use.tolist()
                    watch.save()
            display.advance(status_line(record) if is_logged else None)
            if watch.wants_stop:
                raise worker.interrupted(config.run, state.step)
        display.note(
            f"{state.numbers['codes_used']} of {config.model.vocab_size} codes used, perplexity "
            f"{state.numbers['code_perplexity']:.1f}, reconstruction error {state.numbers['reconstruction_error']:.4f}"
        )
        watch.tell_corrupt(display)
    summary = run.finish({name: value for name, value in state.numbers.items() if name != "use"})
    worker.keep()
    return summary


def train_step(
    state: TrainingState,
    images: Float[Tensor, "batch channel height width"],
    config: TokenizerConfig,
    *,
    lr: float,
    progress: float,
    precision: Precision,
    flags: Flags = NO_FLAGS,
) -> tuple[StepResult, Float[Tensor, " code"]]:
    """One optimiser step at a share `progress` of the run; also returns how often each code was the best."""
    model = state.model
    assert isinstance(model, DiscreteVAE)
    with precision.autocast(images.device):
        logits = model.code_logits(images)
        weights = F.gumbel_softmax(logits.float(), tau=relaxation(config.codebook, progress), dim=-1)
        decoded = model.decode(weights, cells(model, images))
    error = F.mse_loss(decoded.float(), images)
    loss = error + config.codebook.uniform_weight * imbalance(logits.float())
    state.scaler.scale(loss).backward()
    verdict = agree(ALONE, loss.detach(), flags)
    applied = state.apply_gradients(lr, config.optim.clip_grad, verdict.is_bad)
    found = {"reconstruction_error": error.detach()}
    result = StepResult(verdict.loss, applied.gradient_norm, found, applied.skipped, verdict.flags)
    return result, count_codes(logits.detach())


def model_input(model: DiscreteVAE, pixels: Shaped[Tensor, "batch channel height width"]) -> Float[Tensor, "..."]:
    """Pixels normalised for the tokenizer, in the memory format that convolutions like."""
    return normalise(pixels, model.mean, model.std).contiguous(memory_format=torch.channels_last)


def cells(model: DiscreteVAE, images: Float[Tensor, "batch channel height width"]) -> tuple[int, int]:
    """The grid of codes of a batch."""
    return images.shape[2] // model.stride, images.shape[3] // model.stride


def relaxation(config: CodebookConfig, progress: float) -> float:
    """The Gumbel-softmax temperature at a share of the run: exponential from start to end."""
    return config.start_temperature * (config.end_temperature / config.start_temperature) ** progress


def imbalance(logits: Float[Tensor, "batch patch code"]) -> Float[Tensor, ""]:
    """KL(mean code distribution of the batch || uniform), in nats: 0 if all codes are used alike."""
    mean = torch.softmax(logits, dim=-1).mean(dim=(0, 1))
    return math.log(logits.shape[-1]) - entropy(mean)


def revive_dead_codes(model: DiscreteVAE, use: Float[Tensor, " code"], seed: int) -> None:
    """Make codes that were never the best into copies of codes drawn by how often they were."""
    dead = (use == 0).nonzero()[:, 0].cpu()
    if len(dead) and float(use.sum()) > 0:
        generator = torch.Generator().manual_seed(seed)
        donors = torch.multinomial(use.cpu(), len(dead), replacement=True, generator=generator)
        model.revive(dead, donors, generator)


@torch.no_grad()
def judge(
    model: DiscreteVAE, dataset: ViewDataset, config: TokenizerConfig, device: torch.device, *, unused_epoch: int
) -> dict[str, Any]:
    """A finished tokenizer on crops of an epoch that it was not trained on; also saves the picture of reconstructions.

    Returns the reconstruction error (mean squared, of normalised pixels), code use, and the temperature at which
    patches have DEFAULT_PERPLEXITY choices (fewer in a vocabulary of at most 6); no temperature if there is none.
    """
    model.eval()
    count = min(NUM_JUDGED, len(dataset))
    first = unused_epoch * (len(dataset) // count)
    keys = batch_keys(len(dataset), count, config.seed, range(first, first + 1))
    (batch,) = make_loader(dataset, keys, count, num_workers=0, pin=False)
    images = model_input(model, check_readable(batch, dataset.source).views[0].to(device))
    parts = images.split(SLICE)
    counts = sum((count_codes(model.code_logits(part)) for part in parts), torch.zeros(model.vocab_size, device=device))
    decoded = torch.cat([model.reconstruct(part) for part in parts])
    save_comparison(images[:16], decoded[:16], Path(config.run) / "reconstructions.png")
    found = {
        "reconstruction_error": float(F.mse_loss(decoded, images)),
        "pixel_variance": float(images.var()),
        "codes_used": int((counts > 0).sum()),
        "code_perplexity": perplexity(counts),
        "code_counts": counts.int().tolist(),
    }
    goal = min(DEFAULT_PERPLEXITY, (1 + model.vocab_size) / 2)
    with contextlib.suppress(RunError):  # collapsed codes: a run of hours still ends with what it has learned
        found["temperature"] = calibrate_temperature(logits_of(model, images[:NUM_CALIBRATED]), goal)
    model.train()
    return found


def save_comparison(images: Tensor, decoded: Tensor, path: Path) -> None:
    """A PNG of two rows: images above, what their codes say of them below. Colours are in [-1, 1]; others are stretched
    from their lowest value to their highest.
    """
    rows = [torch.cat(list(row), dim=2) for row in (images, decoded)]
    both = torch.cat(rows, dim=1).cpu()
    pixels = both if len(both) != COLOURS else ((both.clamp(-1, 1) + 1) * 127.5).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(false_colours(pixels.permute(1, 2, 0).numpy())).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
