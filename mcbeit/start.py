"""What jobs have in common that start from the weights of a backbone: which weights, which model, which images."""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator, model_validator

from mcbeit.config import UserPath, validate
from mcbeit.errors import ConfigError
from mcbeit.initial_weights import HasBackbone, check_init, model_of, start_from
from mcbeit.preprocess import Preprocess
from mcbeit.supervised import SupervisedConfig
from mcbeit.vit import ModelConfig
from mcbeit.weights import read_weights
from mcbeit.worker import Worker

RANDOM = "random"
FINETUNED: dict[str, Any] = {"bias_tables": "per-block", "final_norm": "pooled"}  # of models, unless they are told


class StartConfig(SupervisedConfig):
    """A supervised job on a backbone. What `preprocess` and `model` leave open is taken from the weights."""

    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = FINETUNED  # which no weights change

    init: UserPath | None = None  # weights: a run folder, a .safetensors or .pth file, timm:NAME; or random
    preprocess: Preprocess = Preprocess()
    model: ModelConfig = Field(default_factory=dict, validate_default=True)

    @field_validator("model", mode="before")
    @classmethod
    def _as_finetuned(cls, values: Any) -> Any:
        return {**cls.MODEL_DEFAULTS, **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _masks_nothing(self) -> "StartConfig":
        if self.data.masks_per_image != 1:
            raise ValueError("data.masks_per_image is for pretraining, which masks; leave it out")
        return self

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


C = TypeVar("C", bound=StartConfig)


def with_weights(config: C) -> C:
    """The config with what it leaves open of model and preprocessing taken from its initial weights, if it has some.

    Raises ConfigError that names what is set and does not agree with the weights, WeightsError if they cannot be read.
    """
    is_open = any(
        section.model_fields_set < set(type(section).model_fields) for section in (config.model, config.preprocess)
    )
    if config.init in (None, RANDOM) or not is_open:
        return config
    weights = read_weights(str(config.init), num_heads=config.model.num_heads)
    known = weights.preprocess or Preprocess()
    preprocess = {
        key: getattr(config.preprocess if key in config.preprocess.model_fields_set else known, key)
        for key in Preprocess.model_fields
    }
    if "image_size" not in config.preprocess.model_fields_set:
        preprocess["image_size"] = weights.image_size
    model = model_of(weights, config.model).model_dump()
    values = {**config.model_dump(), "model": model, "preprocess": preprocess}
    return validate(type(config), values, origin=f"the config, with init={config.init}")


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
    _ = config.grid_side
    check_init(config.weights, Path(config.run), config.model, config.data.channels)


def initial_weights(config: StartConfig, model: HasBackbone) -> dict[str, list[str]]:
    """Give the model the weights that its config names; returns what is kept of that."""
    if config.weights is None:
        return {"init": ["starts from random numbers"]}
    return {"init": start_from(config.weights, model, config.model, config.preprocess)}
