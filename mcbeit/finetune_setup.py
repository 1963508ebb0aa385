"""What a finetuning run is made of: its config, and the parts built from it before step 0."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from mcbeit.augment import CropConfig
from mcbeit.classifier import Classifier
from mcbeit.config import UserPath, validate
from mcbeit.cost import Cost, estimate
from mcbeit.data import DataConfig, Key, batch_keys
from mcbeit.device import ComputeConfig, Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.finetune_data import FinetuneImages, JudgeConfig
from mcbeit.group import Group
from mcbeit.initial_weights import check_init, has_begun, model_of, start_from
from mcbeit.label_augment import AugmentConfig, AugmentedDataset, Mixing
from mcbeit.layer_decay import FinetuneOptimConfig, layer_groups
from mcbeit.optim import adamw
from mcbeit.parallel import is_sharded, replicate, shard_if_asked, whole_state
from mcbeit.preprocess import COLOURS, Preprocess
from mcbeit.runfolder import RunConfig
from mcbeit.state import TrainingState
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.weights import read_weights
from mcbeit.worker import Worker

RANDOM = "random"
FINETUNED: dict[str, Any] = {"bias_tables": "per-block", "final_norm": "pooled"}  # of models, unless they are told


class FinetuneConfig(RunConfig):
    """Everything about a finetuning run."""

    job: Literal["finetune"] = "finetune"
    run: UserPath = "runs/finetune"
    init: UserPath | None = None  # weights: a run folder, a .safetensors or .pth file, timm:NAME; or random
    data: DataConfig = DataConfig()
    label_fraction: float = Field(1.0, gt=0, le=1)  # of the training images, of each class alike, drawn by the seed
    preprocess: Preprocess = Preprocess()  # keys that are left open are taken from the weights
    crop: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig(**FINETUNED)  # the same
    head_init_scale: float = Field(0.001, ge=0)
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    compute: ComputeConfig = ComputeConfig()
    eval: JudgeConfig = JudgeConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _as_finetuned(cls, values: Any) -> Any:
        return {**FINETUNED, **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _channels_fit(self) -> "FinetuneConfig":
        if self.init in (None, RANDOM) or "mean" in self.preprocess.model_fields_set:
            self.data.check_channels(self.preprocess.mean, section="preprocess", crop=self.crop)
        if self.augment.policy is not None and self.data.channels != COLOURS:
            raise ValueError(
                f"augment.policy={self.augment.policy} is for colours; data.channels is {self.data.channels}: set "
                "augment.policy=null"
            )
        return self

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "FinetuneConfig":
        if self.augment.policy is not None and self.crop.color_jitter:
            raise ValueError("crop.color_jitter is in place of RandAugment; set it to 0, or augment.policy to null")
        if self.data.masks_per_image != 1:
            raise ValueError("data.masks_per_image is for pretraining, which masks; leave it out")
        if self.compute.shard != "none" and self.optim.ema_decay is not None:
            raise ValueError("compute.shard=fsdp does not go with optim.ema_decay; set one of them otherwise")
        return self

    @property
    def weights(self) -> str | None:
        """What it starts from; None for random numbers. Raises ConfigError if the config leaves it open."""
        if self.init is None:
            raise ConfigError(
                "init is not set; name the weights to finetune, for example init=runs/demo, or train from scratch: "
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


@dataclass
class Finetuning:
    """What a step needs: the parts that learn (`state`) and the parts that do not."""

    config: FinetuneConfig
    group: Group
    device: torch.device
    precision: Precision
    labels: Int[Tensor, " image"]  # of the training images
    mixing: Mixing
    model: Classifier
    network: nn.Module  # the model as it is called: with DDP around it where there are other workers
    state: TrainingState
    cost: Cost

    def judged_model(self) -> Classifier:
        """The model that counts, with all of its parameters: the averaged one if there is one.

        All workers must ask for it.
        """
        if isinstance(self.state.teacher, Classifier):
            return self.state.teacher
        if not is_sharded(self.model):
            return self.model
        model = make_classifier(self.config, self.model.head.out_features).to(self.device)
        model.load_state_dict(whole_state(self.model))
        return model


def with_weights(config: FinetuneConfig) -> FinetuneConfig:
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
    return validate(FinetuneConfig, values, origin=f"the config, with init={config.init}")


def check_start(config: FinetuneConfig) -> None:
    """Raise now what `build` would raise of the initial weights."""
    _ = config.grid_side
    check_init(config.weights, Path(config.run), config.model, config.data.channels)


def build(config: FinetuneConfig, images: FinetuneImages, worker: Worker | None = None) -> Finetuning:
    """Everything that a run needs, as it is before step 0."""
    group = (worker or Worker()).group
    device = choose_device()
    precision = choose_precision(config.compute.precision, device)
    torch.manual_seed(config.seed)
    model = make_classifier(config, images.num_classes).to(device)
    model.backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    goes_on = group.first(lambda: has_begun(Path(config.run)))
    start = {} if goes_on else group.each(lambda: initial_weights(config, model))
    shard_if_asked(model, model.backbone.blocks, config.compute, precision, group, device)
    optimizer = adamw(layer_groups(model, config.model.shape[1], config.optim), config.optim)
    teacher_of = None if config.optim.ema_decay is None else model
    state = TrainingState.start(model, optimizer, precision, teacher_of=teacher_of)
    state.numbers |= start
    network = replicate(model, group, device)
    if config.compute.compile:
        model.compile()
    mixing = Mixing(config.augment, images.num_classes, seed=config.seed, rank=group.rank)
    labels = torch.from_numpy(images.labels)
    cost = estimate_cost(config, images.num_classes)
    return Finetuning(config, group, device, precision, labels, mixing, model, network, state, cost)


def make_classifier(config: FinetuneConfig, num_classes: int) -> Classifier:
    """The model with the numbers that it begins with if no weights are named."""
    size, channels = config.preprocess.image_size, config.data.channels
    backbone = VisionTransformer(config.model, image_size=size, channels=channels)
    return Classifier(backbone, num_classes, head_init_scale=config.head_init_scale)


def initial_weights(config: FinetuneConfig, model: Classifier) -> dict[str, list[str]]:
    """Give the model the weights that its config names; returns what is kept of that."""
    if config.weights is None:
        return {"init": ["starts from random numbers"]}
    return {"init": start_from(config.weights, model, config.model, config.preprocess)}


def augmented(config: FinetuneConfig, images: FinetuneImages, *, num_dice: int = 0) -> AugmentedDataset:
    """The training images as they are learned from."""
    return AugmentedDataset(
        images.train,
        seed=config.seed,
        crop=config.crop,
        augment=config.augment,
        preprocess=config.preprocess,
        num_dice=num_dice,
    )


def keys(config: FinetuneConfig, images: FinetuneImages, steps: range) -> Iterator[list[Key]]:
    """What the batches of some steps are made of, over all workers."""
    return batch_keys(len(images.train), config.optim.batch_size, config.seed, steps)


def estimate_cost(config: FinetuneConfig, num_classes: int) -> Cost:
    """FLOPs per image."""
    dim, depth, _ = config.model.shape
    return estimate(
        num_patches=config.grid_side**2,
        patch_size=config.model.patch_size,
        dim=dim,
        depth=depth,
        mlp_ratio=config.model.mlp_ratio,
        num_masked=1,  # the head sees one vector
        vocab_size=num_classes,
        tokenizer=0.0,
        masks_per_image=1,
        has_teacher=False,
        channels=config.data.channels,
    )
