"""What a finetuning run is made of: its config, and the parts built from it before step 0."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from mcbeit.augment import CropConfig
from mcbeit.classifier import Classifier
from mcbeit.config import UserPath
from mcbeit.cost import Cost, estimate
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.finetune_data import FinetuneImages, JudgeConfig
from mcbeit.group import Group
from mcbeit.image_files import COLOURS
from mcbeit.initial_weights import has_begun
from mcbeit.label_augment import AugmentConfig, AugmentedDataset, Mixing
from mcbeit.layer_decay import FinetuneOptimConfig, layer_groups
from mcbeit.optim import adamw
from mcbeit.parallel import is_sharded, replicate, shard_if_asked, whole_state
from mcbeit.start import RANDOM, StartConfig, initial_weights
from mcbeit.state import TrainingState
from mcbeit.vit import VisionTransformer
from mcbeit.worker import Worker


class FinetuneConfig(StartConfig):
    """Everything about a finetuning run."""

    job: Literal["finetune"] = "finetune"
    run: UserPath = "runs/finetune"
    label_fraction: float = Field(1.0, gt=0, le=1)  # of the training images, of each class alike, drawn by the seed
    crop: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    head_init_scale: float = Field(0.001, ge=0)
    optim: FinetuneOptimConfig = FinetuneOptimConfig()
    eval: JudgeConfig = JudgeConfig()

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
        if self.compute.shard != "none" and self.optim.ema_decay is not None:
            raise ValueError("compute.shard=fsdp does not go with optim.ema_decay; set one of them otherwise")
        return self


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

    @property
    def flops_per_image(self) -> float:
        """Of a step."""
        return self.cost.total

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
