"""The jobs that `mcbeit train` knows, told apart by the key `job` of their config."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mcbeit.config import dump, override, read_values, validate
from mcbeit.cost import STATED_SPEEDS, tokenizer_flops
from mcbeit.dvae import DiscreteVAE
from mcbeit.errors import ConfigError, DataError
from mcbeit.finetune import finetune, open_images
from mcbeit.finetune_setup import FinetuneConfig, make_classifier, with_weights
from mcbeit.finetune_setup import estimate_cost as estimate_classifier_cost
from mcbeit.kmeans import KMeansTokenizer
from mcbeit.kmeans_training import KMeansRunConfig, fit_kmeans
from mcbeit.masked import MaskedImageModel
from mcbeit.optim import steps_per_epoch
from mcbeit.pretrain import pretrain
from mcbeit.pretrain_setup import PretrainConfig, estimate_cost, first_run, with_model
from mcbeit.tokenizer_plan import TokenizerRun, planned_tokenizer, with_path
from mcbeit.tokenizer_training import TokenizerConfig, train_tokenizer
from mcbeit.vit import VisionTransformer
from mcbeit.worker import Worker

Job = PretrainConfig | FinetuneConfig | TokenizerConfig | KMeansRunConfig
CONFIGS: dict[str, type[Job]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "tokenizer": TokenizerConfig,
    "kmeans-tokenizer": KMeansRunConfig,
}
IMAGENET_IMAGES, IMAGENET_CLASSES = 1_281_167, 1000  # what a preset whose images are not there is costed for
ALIASES = {"objective.omega": "objective.refine_weight"}  # an assignment replaces what the preset calls otherwise


def load_job(source: str, assignments: Sequence[str] = ()) -> Job:
    """The config of a preset or file with overrides. Raises ConfigError with every mistake in it."""
    return parse_job(override(read_values(source), map(_without_alias, assignments)), origin=source)


def _without_alias(assignment: str) -> str:
    key, equals, value = assignment.partition("=")
    return ALIASES.get(key, key) + equals + value


def run_job(config: Job, *, resume: bool = False, worker: Worker | None = None) -> dict[str, Any]:
    """Start or resume the run that `config` describes; returns its summary. Each process of a group calls it."""
    if isinstance(config, PretrainConfig):
        return pretrain(config, resume=resume, worker=worker)
    if isinstance(config, FinetuneConfig):
        return finetune(config, resume=resume, worker=worker)
    if isinstance(config, KMeansRunConfig):
        return fit_kmeans(config, resume=resume, worker=worker)
    return train_tokenizer(config, resume=resume, worker=worker)


def parse_job(values: dict[str, Any], *, origin: str) -> Job:
    """The config of plain values. Raises ConfigError with every mistake in it."""
    kind = values.get("job", "pretrain")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ConfigError(f"{origin}: job must be one of {', '.join(CONFIGS)}, found {kind!r}")
    config = validate(CONFIGS[kind], values, origin=origin)
    if isinstance(config, FinetuneConfig):
        return with_weights(config)
    return with_model(config) if isinstance(config, PretrainConfig) else config


def describe_job(config: Job) -> str:
    """The resolved config as YAML, below comments that say what the run takes. It can be run as it is."""
    return "".join(f"# {line}\n" for line in cost_lines(config)) + dump(config)


def cost_lines(config: Job) -> Iterator[str]:
    """Parameters, steps, FLOPs per image, and the hours that these make at stated speeds: an estimate."""
    num_images, num_classes, origin = _count_images(config)
    parameters, flops = _cost(config, num_classes)
    yield "parameters: " + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in parameters.items())
    yield "FLOPs per image: " + ", ".join(f"{name} {count / 1e9:.4g} G" for name, count in flops.items())
    per_epoch, total = _steps(config, num_images)
    yield f"steps: {total:,} of {config.optim.batch_size} images; {per_epoch:,} per epoch ({origin}: {num_images:,})"
    total_flops = sum(flops.values()) * config.optim.batch_size * total
    first = first_run(config, num_images) if isinstance(config, PretrainConfig) else None
    if first is not None:
        _, steps = _steps(first, num_images)
        total_flops += sum(_tokenizer_cost(first)[1].values()) * first.optim.batch_size * steps
        yield f"a tokenizer is trained first, into {first.run}: {steps:,} steps of {first.optim.batch_size} images"
    for name, speed in STATED_SPEEDS.items():
        hours = total_flops / speed / 3600
        text = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.01 else "less than 0.01"
        yield f"estimated hours: {text} on {name}"


def _count_images(config: Job) -> tuple[int, int, str]:
    """How many images to learn from there are, how many classes, and where; ImageNet-1K's if that is not known yet."""
    if config.data.source is None:
        return IMAGENET_IMAGES, IMAGENET_CLASSES, "data.source is not set; with the images of ImageNet-1K"
    try:
        if isinstance(config, FinetuneConfig):
            images = open_images(config)
            return len(images.train), images.num_classes, f"{config.data.source}"
        return len(config.data.open()), 0, f"{config.data.source}"
    except DataError as error:
        return IMAGENET_IMAGES, IMAGENET_CLASSES, f"{error}; with the images of ImageNet-1K"


def _steps(config: Job, num_images: int) -> tuple[int, int]:
    """Steps per epoch, and in all."""
    per_epoch = steps_per_epoch(num_images, config.optim, config.data.masks_per_image)
    return per_epoch, config.optim.total_steps(per_epoch)


def _cost(config: Job, num_classes: int) -> tuple[dict[str, int], dict[str, float]]:
    """Parameters and FLOPs per image, by part."""
    if isinstance(config, PretrainConfig):
        return _pretrain_cost(config)
    if isinstance(config, FinetuneConfig):
        return _finetune_cost(config, num_classes)
    return _tokenizer_cost(config)


def _finetune_cost(config: FinetuneConfig, num_classes: int) -> tuple[dict[str, int], dict[str, float]]:
    with torch.device("meta"):
        model = make_classifier(config, num_classes)
    cost = estimate_classifier_cost(config, num_classes)
    parameters = {"backbone": _count(model.backbone), "head": _count(model.head)}
    return parameters, {name: value for name, value in cost._asdict().items() if value}


def _pretrain_cost(config: PretrainConfig) -> tuple[dict[str, int], dict[str, float]]:
    with torch.device("meta"):
        tokenizer = planned_tokenizer(with_path(config.tokenizer, Path(config.run)), first_run(config))
        backbone = VisionTransformer(
            config.model, image_size=config.preprocess.image_size, channels=config.data.channels
        )
        model = MaskedImageModel(backbone, tokenizer.vocab_size, config.objective)
        cost = estimate_cost(config, tokenizer)
    parameters = {"backbone": _count(backbone), "head": _count(model.lm_head), "tokenizer (frozen)": _count(tokenizer)}
    return parameters, {name: value for name, value in cost._asdict().items() if value}


def _tokenizer_cost(config: TokenizerRun) -> tuple[dict[str, int], dict[str, float]]:
    if isinstance(config, KMeansRunConfig):
        with torch.device("meta"):
            fitted = KMeansTokenizer(config.model).eval()
            return {"network (frozen)": _count(fitted)}, {"features": tokenizer_flops(fitted, config.image_size)}
    with torch.device("meta"):
        tokenizer = DiscreteVAE(config.model)
        encoder = tokenizer_flops(tokenizer, config.image_size)
    # the decoder mirrors the encoder; a backward pass is twice its forward
    return {"tokenizer": _count(tokenizer)}, {"encoder and decoder": 6 * encoder}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
