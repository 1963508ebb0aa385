"""What jobs have in common that start from the weights of a backbone: which weights, which model, which images."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator, model_validator

from mcbeit.config import Config, UserPath, validate
from mcbeit.errors import ConfigError
from mcbeit.image_files import COLOURS
from mcbeit.initial_weights import (
    HasBackbone,
    check_agrees,
    check_channels,
    completed,
    difference,
    has_begun,
    start_from,
)
from mcbeit.preprocess import Preprocess
from mcbeit.supervised import SupervisedConfig
from mcbeit.vit import ModelConfig
from mcbeit.weights import Weights, read_weights
from mcbeit.worker import Worker

RANDOM = "random"
FINETUNED: dict[str, Any] = {"bias_tables": "per-block", "final_norm": "pooled"}  # of models, unless they are told


@dataclass(frozen=True)
class StartingPoint:
    """What weights tell of the model that a job starts from."""

    origin: str
    model: ModelConfig
    image_size: int  # pixels
    channels: int
    preprocess: Preprocess | None  # None: they do not tell
    keys: dict[str, Any] = field(default_factory=dict)  # of the config, beside `model`: of a model of the same job

    @classmethod
    def of(cls, weights: Weights) -> "StartingPoint":
        """Of a backbone."""
        return cls(weights.origin, weights.model, weights.image_size, weights.channels, weights.preprocess)


class StartConfig(SupervisedConfig):
    """A supervised job on a backbone. What `preprocess` and `model` leave open is taken from the weights.

    So are the SHAPE_KEYS where the weights are those of a model of the same job.
    """

    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = FINETUNED  # which no weights change
    PREPROCESS_KEYS: ClassVar[tuple[str, ...]] = tuple(Preprocess.model_fields)  # that the job reads
    SHAPE_KEYS: ClassVar[tuple[str, ...]] = ()  # dotted, beside those of `model`

    init: UserPath | None = None  # weights: a run folder, a .safetensors or .pth file, timm:NAME; or random
    preprocess: Preprocess = Preprocess()
    model: ModelConfig = Field(default_factory=dict, validate_default=True)

    @field_validator("model", mode="before")
    @classmethod
    def _as_finetuned(cls, values: Any) -> Any:
        return {**cls.MODEL_DEFAULTS, **values} if isinstance(values, dict) else values

    @field_validator("preprocess", mode="before")
    @classmethod
    def _sets_what_is_read(cls, values: Any) -> Any:
        given = values.model_fields_set if isinstance(values, Preprocess) else values
        given = set(given) if isinstance(given, dict | set) else set()
        is_of_a_run = given >= set(Preprocess.model_fields)  # which writes down all that its weights have
        if not is_of_a_run and (complaint := cls.unread(given)):
            raise ValueError(complaint)
        return values

    @model_validator(mode="after")
    def _masks_nothing(self) -> "StartConfig":
        if self.data.masks_per_image != 1:
            raise ValueError("data.masks_per_image is for pretraining, which masks; leave it out")
        return self

    def check_colours(self) -> None:
        """For jobs that take no other images. Raises ValueError, which validators do."""
        if self.data.channels != COLOURS:
            raise ValueError(f"{self.job} is for images of colours; data.channels is {self.data.channels}")
        if self.preprocess.channels != COLOURS:
            raise ValueError(
                f"preprocess.mean and preprocess.std have {self.preprocess.channels} numbers each, for images of "
                f"{COLOURS} colours"
            )

    @property
    def weights(self) -> str | None:
        """What it starts from; None for random numbers. Raises ConfigError if the config leaves it open."""
        if self.init is None:
            raise ConfigError(
                "init is not set; name the weights to start from, for example init=runs/demo, or train from scratch: "
                "init=random, with the model that you want"
            )
        return None if self.init == RANDOM else self.init

    @property
    def grid_side(self) -> int:
        """Patches per column and row. Raises ConfigError unless the image is a whole number of patches."""
        size, patch = self.preprocess.image_size, self.model.patch_size
        if size % patch:
            raise ConfigError(f"preprocess.image_size={size} must be a multiple of model.patch_size={patch}")
        return size // patch

    def starting_point(self, init: str) -> StartingPoint:
        """What weights tell of the model. Raises WeightsError if they cannot be read."""
        return StartingPoint.of(read_weights(init, num_heads=self.model.num_heads))

    @property
    def shape(self) -> dict[str, Any]:
        """The values of SHAPE_KEYS, those that are open with what they stand for."""
        return {}

    def differences(self, start: StartingPoint) -> Iterator[str]:
        """A line for each key beside `model` that is not that of the weights."""
        wanted = self.shape if start.keys else {}
        return (difference(key, wanted[key], found) for key, found in start.keys.items() if wanted[key] != found)

    def check_agrees(self, start: StartingPoint) -> None:
        """Raises ConfigError with every key of the model that is not that of the weights."""
        check_agrees(self.model, start, self.differences(start))

    @classmethod
    def unread(cls, given: Collection[str]) -> str | None:
        """What is wrong with setting these keys of `preprocess`; None if the job reads all of them."""
        found = [key for key in Preprocess.model_fields if key in given and key not in cls.PREPROCESS_KEYS]
        job, read = cls.model_fields["job"].default, ", ".join(cls.PREPROCESS_KEYS)
        return f"a {job} run reads {read} only; leave out {', '.join(found)}" if found else None


C = TypeVar("C", bound=StartConfig)


def with_weights(config: C) -> C:
    """The config with what it leaves open of model and preprocessing taken from its initial weights, if it has some.

    Raises ConfigError that names what is set and does not agree with the weights, WeightsError if they cannot be read.
    """
    if config.init in (None, RANDOM) or not _is_open(config):
        return config
    start = config.starting_point(str(config.init))
    known = start.preprocess or Preprocess()
    preprocess = {
        key: getattr(config.preprocess if key in config.preprocess.model_fields_set else known, key)
        for key in Preprocess.model_fields
    }
    if "image_size" not in config.preprocess.model_fields_set:
        preprocess["image_size"] = start.image_size
    model = completed(config.model, start.model).model_dump()
    values = {**config.model_dump(), "model": model, "preprocess": preprocess}
    for key in (key for key in start.keys if not _sets(config, key)):
        section, _, leaf = key.rpartition(".")
        (values[section] if section else values)[leaf] = start.keys[key]
    found = validate(type(config), values, origin=f"the config, with init={config.init}")
    found.check_agrees(start)
    return found


def _is_open(config: StartConfig) -> bool:
    sections = (config.model, config.preprocess)
    is_whole = all(section.model_fields_set == set(type(section).model_fields) for section in sections)
    return not (is_whole and all(_sets(config, key) for key in config.SHAPE_KEYS))


def _sets(config: Config, key: str) -> bool:
    name, _, rest = key.partition(".")
    return name in config.model_fields_set and (not rest or _sets(getattr(config, name), rest))


def ready(config: C, worker: Worker) -> C:
    """`with_weights`, with the run folder up to date; raises now what starting would raise after other work.

    All workers call it.
    """
    group = worker.group
    group.first(worker.fetch)
    config = group.each(lambda: with_weights(config))
    group.first(lambda: _check_start(config))
    return config


def _check_start(config: StartConfig) -> None:
    """A run that goes on needs no weights."""
    _ = config.grid_side
    weights = config.weights
    if weights is not None and not has_begun(Path(config.run)):
        start = config.starting_point(weights)
        config.check_agrees(start)
        check_channels(config.data.channels, start)


def initial_weights(config: StartConfig, model: HasBackbone) -> dict[str, list[str]]:
    """Give the model the weights that its config names; returns what is kept of that."""
    if config.weights is None:
        return {"init": ["starts from random numbers"]}
    return {"init": start_from(config.weights, model, config.model, config.preprocess)}
