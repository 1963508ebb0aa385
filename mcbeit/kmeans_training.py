"""Fitting the k-means tokenizer: mini-batch k-means over the features of random crops, every code in use.

The centres start as k-means++ on the first crops. Each step moves a centre to the mean of its patches, by the share
that they are of all patches it ever had (Sculley, 2010). A centre that had no patch for a while is put on one that is
far from all centres. On a CPU the result depends on the seed only; a GPU adds in any order.
"""

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from mcbeit.augment import CropConfig, normalise
from mcbeit.clustering import KMeansState, fit_step, revive, spread_centres
from mcbeit.config import Config, UserPath
from mcbeit.data import DataConfig, ViewDataset, auto_workers, batch_keys, check_readable, make_loader
from mcbeit.device import ComputeConfig, choose_device
from mcbeit.errors import ConfigError, RunError
from mcbeit.image_files import COLOURS
from mcbeit.kmeans import KMeansConfig, KMeansTokenizer
from mcbeit.meter import Meter, is_due, status_line
from mcbeit.metric_log import MetricLog
from mcbeit.network_weights import PACKAGED, PACKAGED_MEAN, PACKAGED_STD, load_network, read_network
from mcbeit.optim import DurationConfig, steps_per_epoch
from mcbeit.preprocess import Interpolation
from mcbeit.runfolder import RunConfig, open_run
from mcbeit.sources import source_notes
from mcbeit.tokenizer import count_codes, perplexity
from mcbeit.tokenizer_choice import SLICE, calibrate_temperature, logits_of
from mcbeit.tokenizer_data import crop_dataset, crop_keys, crop_loader
from mcbeit.tokenizer_training import DEFAULT_PERPLEXITY, NUM_CALIBRATED, NUM_JUDGED, unread_options
from mcbeit.watch import Watch
from mcbeit.worker import Worker

PATCHES_PER_CODE = 16  # that the first centres are drawn from, and the deviation of channels is found on,
MAX_NUMBERS = 1 << 25  # unless these would be more numbers
MIN_DEVIATION = 1e-6  # of a channel: less is none


class CentreConfig(Config):
    """How centres are kept in use."""

    revive_every_steps: int = Field(20, ge=1)  # centres without a patch for so long are put elsewhere
    revive_until: float = Field(0.8, ge=0, le=1)  # share of the run after which none is


class KMeansRunConfig(RunConfig):
    """Everything about a run that fits a k-means tokenizer."""

    job: Literal["kmeans-tokenizer"] = "kmeans-tokenizer"
    run: UserPath = "runs/kmeans-tokenizer"
    data: DataConfig = DataConfig()
    weights: UserPath = PACKAGED  # of the network: a file in timm's layout, or those of a package
    image_size: int = Field(224, ge=1)  # pixels of the crops that it is fitted on
    interpolation: Interpolation = "bicubic"
    crop: CropConfig = CropConfig()
    model: KMeansConfig = KMeansConfig()
    centres: CentreConfig = CentreConfig()
    optim: DurationConfig = DurationConfig(epochs=1, batch_size=32)
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "KMeansRunConfig":
        if self.data.channels != COLOURS:
            raise ValueError(
                f"data.channels={self.data.channels}: the network of a k-means tokenizer sees colours; for other "
                "channels train a tokenizer of kind dvae"
            )
        unread = unread_options(self.data, self.compute)
        if self.compute.precision not in ("auto", "fp32"):
            unread.append("compute.precision")
        if unread:
            raise ValueError(f"{', '.join(unread)}: not for a k-means tokenizer, which has no gradients; leave it out")
        return self


def check_kmeans(config: KMeansRunConfig) -> None:
    """Raise ConfigError or WeightsError unless the crops are whole codes and the network and its weights are there."""
    if config.image_size % config.model.stride:
        raise ConfigError(f"image_size={config.image_size} must be a multiple of model.stride={config.model.stride}")
    with torch.device("meta"):
        KMeansTokenizer(config.model)
    read_network(config.model.network, config.weights)


def fit_kmeans(config: KMeansRunConfig, *, resume: bool = False, worker: Worker | None = None) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    Raises ConfigError, DataError, RunError or WeightsError, before any work where it can be known, and Interrupted if
    it was asked to stop. It is the work of one process.
    """
    at_work = (worker or Worker()).at_work(config.run, threads=config.compute.threads)
    with at_work as (here, folder), torch.no_grad():
        return _fit(config.model_copy(update={"run": folder}), resume=resume, worker=here)


def _fit(config: KMeansRunConfig, *, resume: bool, worker: Worker) -> dict[str, Any]:
    check_kmeans(config)
    if worker.group.size > 1:
        raise ConfigError(f"a tokenizer is fitted by one worker, found {worker.group.size}; use --workers 1")
    worker.fetch()
    source = config.data.open()
    per_epoch = steps_per_epoch(len(source), config.optim)
    total = config.optim.total_steps(per_epoch)
    run = open_run(config, source, resume=resume, named=worker.named)
    if (summary := run.summary()) is not None:
        return summary
    device = choose_device()
    torch.manual_seed(config.seed)
    state = start(config, device)
    model = state.model
    warnings = [*source_notes(source), *run.go_on(state)]
    dataset = crop_dataset(config, source)
    if state.step == 0:
        place_centres(model, dataset, config, device)
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
    worker.began(state.step)

    with worker.display("k-means", total, done=state.step) as display, MetricLog(run, config.log) as log:
        display.note(
            f"{len(source)} images, {total} steps, {model.vocab_size} centres of {model.codebook.shape[1]} features of "
            f"{config.model.network} on {device}"
        )
        for warning in warnings:
            display.warn(warning)
        for batch in crop_loader(config, dataset, range(state.step, total), device):
            flags = watch.flags(batch)
            step = state.step
            features = patch_features(model, batch.to(device).views[0])
            result = fit_step(state, features, flags)
            meter.count(result, num_images=config.optim.batch_size)
            is_logged = step % config.log.every_steps == 0 or state.step == total
            is_saved = is_due(config.checkpoint.every_epochs, per_epoch, state.step, total)
            watch.hear(step, result, display, up_to_now=is_logged or is_saved)
            num_revived = 0
            if state.step % config.centres.revive_every_steps == 0:
                if state.step <= config.centres.revive_until * total and not bool(result.skipped):
                    num_revived = revive(state, features, config.seed + step)
                state.recent.zero_()
            if is_logged:
                record = {
                    "step": step,
                    "epoch": state.step / per_epoch,
                    **meter.read(),
                    "revived": num_revived,
                    "corrupt": watch.num_corrupt,
                }
                log.write(record)
            with meter.paused():
                if state.step == total:
                    state.numbers |= judge(model, dataset, config, device, unused_epoch=state.step // per_epoch + 1)
                if is_saved or watch.wants_stop:
                    watch.save()
            display.advance(status_line(record) if is_logged else None)
            if watch.wants_stop:
                raise worker.interrupted(config.run, state.step)
        found = state.numbers
        display.note(
            f"{found['codes_used']} of {model.vocab_size} codes used, perplexity {found['code_perplexity']:.1f}"
        )
        if (told := complaint(found, model.vocab_size)) is not None:
            display.warn(told)
        watch.tell_corrupt(display)
    summary = run.finish(state.numbers)
    worker.keep()
    return summary


def start(config: KMeansRunConfig, device: torch.device) -> KMeansState:
    """The state before step 0, its centres not yet placed."""
    wanted = config.model
    if config.weights == PACKAGED:
        wanted = wanted.model_copy(update={"mean": wanted.mean or PACKAGED_MEAN, "std": wanted.std or PACKAGED_STD})
    model = KMeansTokenizer(wanted)
    load_network(model.network, wanted.network, read_network(wanted.network, config.weights))
    model = model.eval().to(device)
    counts = torch.zeros(2, wanted.vocab_size, device=device)
    numbers = {"kind": "kmeans", "tokenizer": wanted.model_dump(), "interpolation": config.interpolation}
    return KMeansState(model, counts[0].clone(), counts[1].clone(), numbers=numbers)


def patch_features(model: KMeansTokenizer, pixels: Tensor) -> Float[Tensor, "patch dim"]:
    """The standardised features of all patches of a batch."""
    return model.standardise(_raw_features(model, pixels))


def _raw_features(model: KMeansTokenizer, pixels: Tensor) -> Float[Tensor, "patch dim"]:
    images = normalise(pixels, model.mean, model.std)
    return torch.cat([model.features(part).float().flatten(0, 1) for part in images.split(SLICE)])


def place_centres(model: KMeansTokenizer, dataset: ViewDataset, config: KMeansRunConfig, device: torch.device) -> None:
    """Find mean and deviation of the channels on some crops of the first epoch, and the first centres among them.

    Raises RunError if the features are not finite or if there are fewer patches than codes.
    """
    wanted = min(PATCHES_PER_CODE * model.vocab_size, max(MAX_NUMBERS // len(model.center), model.vocab_size))
    count = min(math.ceil(wanted / (config.image_size // config.model.stride) ** 2), len(dataset))
    keys = batch_keys(len(dataset), 1, config.seed, range(count))
    loader = make_loader(dataset, keys, 1, num_workers=auto_workers(config.data), pin=False)
    features = torch.cat(
        [_raw_features(model, check_readable(batch, dataset.source).views[0].to(device)).cpu() for batch in loader]
    )
    if not bool(torch.isfinite(features).all()):
        raise RunError(f"the features of {config.model.network} are not finite; check weights={config.weights}")
    if len(features) < model.vocab_size:
        raise RunError(
            f"{count} images have {len(features)} patches, fewer than model.vocab_size={model.vocab_size}; lower it"
        )
    model.center.copy_(features.mean(dim=0))
    model.scale.copy_(features.std(dim=0).clamp(min=MIN_DEVIATION))
    generator = torch.Generator().manual_seed(config.seed)
    model.codebook.copy_(spread_centres(model.cpu().standardise(features), model.vocab_size, generator))
    model.to(device)


def complaint(found: Mapping[str, Any], vocab_size: int) -> str | None:
    """What a person should hear of what `judge` found, if anything."""
    if "temperature" not in found:
        return "the codes have collapsed: no temperature gives patches a few choices; fit on more varied images"
    if (num_unused := vocab_size - found["codes_used"]) > vocab_size / 2:
        return f"{num_unused} codes are those of no patch: lower model.vocab_size, or fit on more images"
    return None


def judge(
    model: KMeansTokenizer, dataset: ViewDataset, config: KMeansRunConfig, device: torch.device, *, unused_epoch: int
) -> dict[str, Any]:
    """A finished tokenizer on crops that it was not fitted on: use of its codes, squared distance, temperature.

    At the temperature patches have DEFAULT_PERPLEXITY choices (fewer in a vocabulary of at most 6); there is none if
    the codes have collapsed.
    """
    count = min(NUM_JUDGED, len(dataset))
    first = unused_epoch * (len(dataset) // count)
    keys = batch_keys(len(dataset), count, config.seed, range(first, first + 1))
    (batch,) = make_loader(dataset, keys, count, num_workers=0, pin=False)
    pixels = check_readable(batch, dataset.source).views[0].to(device)
    counts, distances = torch.zeros(model.vocab_size, device=device), []
    for part in pixels.split(SLICE):
        logits = model.code_logits(normalise(part, model.mean, model.std))
        counts += count_codes(logits)
        distances.append(-logits.amax(dim=-1).mean())
    found: dict[str, Any] = {
        "codes_used": int((counts > 0).sum()),
        "code_perplexity": perplexity(counts),
        "code_counts": counts.int().tolist(),
        "squared_distance": float(torch.stack(distances).mean()),
    }
    goal = min(DEFAULT_PERPLEXITY, (1 + model.vocab_size) / 2)
    if found["code_perplexity"] >= 1.5:
        with contextlib.suppress(RunError):
            images = normalise(pixels[:NUM_CALIBRATED], model.mean, model.std)
            found["temperature"] = calibrate_temperature(logits_of(model, images), goal)
    return found
