"""The jobs that `mcbeit train` knows, told apart by the key `job` of their config."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mcbeit.config import dump, override, read_values, validate
from mcbeit.cost import STATED_SPEEDS
from mcbeit.detection.setup import DetectionConfig
from mcbeit.detection.training import detect
from mcbeit.errors import ConfigError, DataError
from mcbeit.finetune import finetune
from mcbeit.finetune_setup import FinetuneConfig
from mcbeit.job_costs import (
    ADE20K,
    COCO,
    IMAGENET,
    Images,
    JobCost,
    detection_cost,
    detection_images,
    finetune_cost,
    finetune_images,
    plain_images,
    pretrain_cost,
    segmentation_cost,
    segmentation_images,
    tokenizer_cost,
)
from mcbeit.kmeans_training import KMeansRunConfig, fit_kmeans
from mcbeit.optim import steps_per_epoch
from mcbeit.pretrain import pretrain
from mcbeit.pretrain_setup import PretrainConfig, first_run, with_model
from mcbeit.segmentation.setup import SegmentationConfig
from mcbeit.segmentation.training import segment
from mcbeit.start import StartConfig, with_weights
from mcbeit.tokenizer_training import TokenizerConfig, train_tokenizer

Job = PretrainConfig | FinetuneConfig | SegmentationConfig | DetectionConfig | TokenizerConfig | KMeansRunConfig
ALIASES = {"objective.omega": "objective.refine_weight"}  # an assignment replaces what the preset calls otherwise


class JobKind(NamedTuple):
    """What is known of a kind of job. The functions take a config of it."""

    config: type[Job]
    run: Callable[..., dict[str, Any]]
    images: Callable[[Any], Images]  # to learn from
    cost: Callable[[Any, int], JobCost]  # with so many classes
    completed: Callable[[Any], Job] = lambda config: config  # with what it leaves open taken from its weights
    published: Images = IMAGENET  # those of the published runs


KINDS = {
    "pretrain": JobKind(PretrainConfig, pretrain, plain_images, pretrain_cost, with_model),
    "finetune": JobKind(FinetuneConfig, finetune, finetune_images, finetune_cost, with_weights),
    "segmentation": JobKind(SegmentationConfig, segment, segmentation_images, segmentation_cost, with_weights, ADE20K),
    "detection": JobKind(DetectionConfig, detect, detection_images, detection_cost, with_weights, COCO),
    "tokenizer": JobKind(TokenizerConfig, train_tokenizer, plain_images, tokenizer_cost),
    "kmeans-tokenizer": JobKind(KMeansRunConfig, fit_kmeans, plain_images, tokenizer_cost),
}


def load_job(source: str, assignments: Sequence[str] = ()) -> Job:
    """The config of a preset or file with overrides; the name of a job is that job with all its defaults.

    Raises ConfigError with every mistake in it.
    """
    values = {"job": source} if source in KINDS else read_values(source)
    assigned = list(map(_without_alias, assignments))
    job = parse_job(override(values, assigned), origin=source)
    given = override({}, assigned).get("preprocess", {})
    if isinstance(job, StartConfig) and isinstance(given, dict) and (complaint := job.unread(given)):
        raise ConfigError(f"{source}: preprocess: {complaint}")  # the config of a run has them, from its weights
    return job


def _without_alias(assignment: str) -> str:
    key, equals, value = assignment.partition("=")
    return ALIASES.get(key, key) + equals + value


def run_job(config: Job, **how: Any) -> dict[str, Any]:
    """Start or resume the run that `config` describes, by `resume` and `worker`; returns its summary.

    Each process of a group calls it.
    """
    return KINDS[config.job].run(config, **how)


def parse_job(values: dict[str, Any], *, origin: str) -> Job:
    """The config of plain values. Raises ConfigError with every mistake in it."""
    kind = values.get("job", "pretrain")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{origin}: job must be one of {', '.join(KINDS)}, found {kind!r}")
    return KINDS[kind].completed(validate(KINDS[kind].config, values, origin=origin))


def describe_job(config: Job) -> str:
    """The resolved config as YAML, below comments that say what the run takes. It can be run as it is."""
    return "".join(f"# {line}\n" for line in cost_lines(config)) + dump(config)


def cost_lines(config: Job) -> Iterator[str]:
    """Parameters, steps, FLOPs per image, and the hours that these make at stated speeds: an estimate."""
    kind = KINDS[config.job]
    images = _images_of(config)
    cost = kind.cost(config, images.num_classes)
    yield "parameters: " + ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in cost.parameters.items())
    yield "FLOPs per image: " + ", ".join(f"{name} {count / 1e9:.4g} G" for name, count in cost.flops.items())
    yield from cost.notes
    per_epoch, total = _steps(config, images.number)
    yield (
        f"steps: {total:,} of {config.optim.batch_size} images; {per_epoch:,} per epoch "
        f"({images.origin}: {images.number:,})"
    )
    total_flops = sum(cost.flops.values()) * config.optim.batch_size * total
    first = first_run(config, images.number) if isinstance(config, PretrainConfig) else None
    if first is not None:
        _, steps = _steps(first, images.number)
        total_flops += sum(tokenizer_cost(first, 0).flops.values()) * first.optim.batch_size * steps
        yield f"a tokenizer is trained first, into {first.run}: {steps:,} steps of {first.optim.batch_size} images"
    for name, speed in STATED_SPEEDS.items():
        hours = total_flops / speed / 3600
        text = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.01 else "less than 0.01"
        yield f"estimated hours: {text} on {name}"


def _images_of(config: Job) -> Images:
    """How many images to learn from there are; as many as the published runs had if that is not known yet."""
    kind = KINDS[config.job]
    if config.data.source is None:
        return kind.published._replace(origin=f"data.source is not set; with the images of {kind.published.origin}")
    try:
        return kind.images(config)
    except DataError as error:
        return kind.published._replace(origin=f"{error}; with the images of {kind.published.origin}")


def _steps(config: Job, num_images: int) -> tuple[int, int]:
    """Steps per epoch, and in all."""
    per_epoch = steps_per_epoch(num_images, config.optim, config.data.masks_per_image)
    return per_epoch, config.optim.total_steps(per_epoch)
