"""What a pretraining run is made of: its config, and the parts built from it before step 0."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from mcbeit.augment import CropConfig, View, normalise
from mcbeit.config import UserPath
from mcbeit.cost import Cost, estimate, tokenizer_flops
from mcbeit.data import Batch, DataConfig, ViewDataset, batch_keys, check_readable, make_loader
from mcbeit.device import ComputeConfig, Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.group import Group
from mcbeit.image_files import COLOURS
from mcbeit.initial_weights import has_begun, model_for, start_from
from mcbeit.masked import MaskedImageModel, ObjectiveConfig
from mcbeit.masking import MaskConfig, num_masked
from mcbeit.optim import OptimConfig, make_optimizer
from mcbeit.parallel import is_sharded, replicate, shard_if_asked, whole_state
from mcbeit.preprocess import Preprocess
from mcbeit.probe import EvalConfig
from mcbeit.runfolder import RunConfig
from mcbeit.sources import ImageSource
from mcbeit.state import TrainingState
from mcbeit.tokenizer import Tokenizer
from mcbeit.tokenizer_choice import TokenizerChoice, choose_temperature, logits_of, low_precision
from mcbeit.tokenizer_plan import TokenizerRun, get_tokenizer, tokenizer_run, train_first, with_path
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.worker import Worker

NUM_CALIBRATED = 64  # images that the temperature is chosen on


class PretrainConfig(RunConfig):
    """Everything about a pretraining run."""

    job: Literal["pretrain"] = "pretrain"
    run: UserPath = "runs/pretrain"
    init: UserPath | None = None  # weights to start from: a run folder, a .safetensors or .pth file, timm:NAME
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
        if self.tokenizer.kind != "dvae" and self.data.channels != COLOURS:
            raise ValueError(
                f"tokenizer.kind={self.tokenizer.kind} is for colours, data.channels is {self.data.channels}; train a "
                "tokenizer on these images: tokenizer.kind=dvae tokenizer.preset=photo-tokenizer"
            )
        return self

    @model_validator(mode="after")
    def _no_sharded_teacher(self) -> "PretrainConfig":
        if self.compute.shard != "none" and self.objective.has_teacher:
            raise ValueError("compute.shard=fsdp does not go with objective.affinity=ema; set one of them otherwise")
        return self

    @model_validator(mode="after")
    def _norms_every_token(self) -> "PretrainConfig":
        if self.model.final_norm != "tokens":
            raise ValueError(
                f"model.final_norm={self.model.final_norm} is that of finetuned models: pretraining predicts single "
                "patches; set model.final_norm=tokens"
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
    group: Group
    device: torch.device
    precision: Precision
    tokenizer: Tokenizer
    tokenizer_dtype: torch.dtype
    model: MaskedImageModel
    network: nn.Module  # the model as it is called: with DDP around it where there are other workers
    state: TrainingState
    cost: Cost

    @property
    def temperature(self) -> float:
        """tau of equation (1), fixed for the whole run."""
        return float(self.state.numbers["temperature"])

    def whole_backbone(self) -> VisionTransformer:
        """The backbone with all of its parameters; all workers must ask for it."""
        if not is_sharded(self.model):
            return self.model.backbone
        found = whole_state(self.model.backbone)
        config = self.config
        backbone = VisionTransformer(
            config.model, image_size=config.preprocess.image_size, channels=config.data.channels
        ).to(self.device)
        backbone.load_state_dict(found)
        return backbone


def build(config: PretrainConfig, source: ImageSource, worker: Worker | None = None) -> Pretraining:
    """Everything that a run needs, as it is before step 0."""
    worker = worker or Worker()
    group = worker.group
    device = choose_device()
    precision = choose_precision(config.compute.precision, device)
    choice = with_path(config.tokenizer, Path(config.run))
    group.first(lambda: train_first(first_run(config, len(source)), worker))
    group.each(lambda: worker.fetch(below="tokenizer/"))
    tokenizer = group.each(lambda: get_tokenizer(choice, config.grid, config.data.channels)).to(device)
    torch.manual_seed(config.seed)
    backbone = VisionTransformer(config.model, image_size=config.preprocess.image_size, channels=config.data.channels)
    backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    model = MaskedImageModel(backbone, tokenizer.vocab_size, config.objective).to(device)
    goes_on = group.first(lambda: has_begun(Path(config.run)))
    start = {} if goes_on else group.each(lambda: initial_weights(config, model))
    shard_if_asked(model, backbone.blocks, config.compute, precision, group, device)
    optimizer = make_optimizer([model], config.optim)
    state = TrainingState.start(
        model, optimizer, precision, teacher_of=backbone if config.objective.has_teacher else None
    )

    network = replicate(model, group, device)
    view = some_tokenizer_views(config, source, tokenizer).to(device)
    tokenizer, agreement = low_precision(tokenizer, view, precision.dtype, config.tokenizer.min_agreement)
    dtype = next(tokenizer.parameters()).dtype
    state.numbers |= start
    state.numbers["temperature"] = group.first(
        lambda: choose_temperature(tokenizer, logits_of(tokenizer, view), config.objective)
    )
    state.numbers["tokenizer_agreement"] = agreement
    if config.compute.compile:
        model.compile()
    cost = estimate_cost(config, tokenizer)
    return Pretraining(config, group, device, precision, tokenizer, dtype, model, network, state, cost)


def with_model(config: PretrainConfig) -> PretrainConfig:
    """The config with what it leaves open of the model taken from its initial weights."""
    return config.model_copy(update={"model": model_for(config.init, config.model)})


def initial_weights(config: PretrainConfig, model: MaskedImageModel) -> dict[str, list[str]]:
    """Give the model the weights that its config names, if it names some; returns what is kept of that."""
    if config.init is None:
        return {}
    return {"init": start_from(config.init, model, config.model, config.preprocess)}


def first_run(config: PretrainConfig, num_images: int | None = None) -> TokenizerRun | None:
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
        mlp_ratio=config.model.mlp_ratio,
        num_masked=num_masked(config.grid, config.mask.ratio),
        vocab_size=tokenizer.vocab_size,
        tokenizer=tokenizer_flops(tokenizer, tokenizer.view_size(config.grid)),
        masks_per_image=config.data.masks_per_image,
        has_teacher=config.objective.has_teacher,
        channels=config.data.channels,
    )


def view_dataset(
    config: PretrainConfig, source: ImageSource, tokenizer: Tokenizer, *, num_dice: int = 0
) -> ViewDataset:
    """The images as the image view, the tokenizer's view, and masks."""
    return ViewDataset(
        source,
        seed=config.seed,
        crop=config.crop,
        views=(
            View(config.preprocess.image_size, config.preprocess.interpolation),
            View(tokenizer.view_size(config.grid), config.tokenizer.interpolation or tokenizer.interpolation),
        ),
        grid=config.grid,
        mask=config.mask,
        masks_per_image=config.data.masks_per_image,
        num_dice=num_dice,
    )


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
