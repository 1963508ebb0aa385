"""What a segmentation run is made of: its config, and the parts built from it before step 0."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.config import Config, UserPath
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.group import Group
from mcbeit.initial_weights import has_begun
from mcbeit.layer_decay import FinetuneOptimConfig, layer_groups
from mcbeit.optim import UNDECAYED, adamw
from mcbeit.parallel import replicate, synchronise_norms
from mcbeit.preprocess import COLOURS
from mcbeit.segmentation.judging import Windows
from mcbeit.segmentation.scene_crops import SceneConfig
from mcbeit.segmentation.schedule import PolynomialConfig
from mcbeit.segmentation.segmenter import Segmenter, default_taps
from mcbeit.segmentation.sliding import check_stride
from mcbeit.start import StartConfig, initial_weights
from mcbeit.state import TrainingState
from mcbeit.supervised import EvalConfig
from mcbeit.vit import VisionTransformer
from mcbeit.worker import Worker


class HeadConfig(Config):
    """UperNet on the backbone."""

    # blocks whose outputs are used, counted from 0, ascending; default: 3, 5, 7, 11 of 12, 7, 11, 15, 23 of 24
    taps: tuple[int, int, int, int] | None = None
    channels: int | None = Field(None, ge=1)  # default: the backbone's width
    auxiliary_channels: int = Field(256, ge=1)
    auxiliary_weight: float = Field(0.4, ge=0)


class SegmentationOptimConfig(PolynomialConfig, FinetuneOptimConfig):
    """The optimiser; the defaults are mc-BEiT's for ViT-B on ADE20K."""

    layer_decay: float = Field(0.9, gt=0, le=1)
    ema_decay: None = None  # not here


class SceneEvalConfig(EvalConfig):
    """How test scenes are looked at."""

    stride: int | None = Field(None, ge=1)  # pixels from a window to the next; default: two thirds of the window
    scales: tuple[PositiveFloat, ...] = Field(
        (1.0,), min_length=1
    )  # of the image; of several, probabilities are averaged
    flip: bool = False  # look at the mirror image too
    batch_size: int = Field(8, ge=1)  # windows at once

    def windows(self, size: int) -> Windows:
        """The same for windows of `size` pixels. Raises ConfigError if they would leave pixels out."""
        stride = self.stride or max(1, size * 2 // 3)
        check_stride(stride, size, key="eval.stride")
        return Windows(stride, self.batch_size, self.scales, self.flip)


class SegmentationConfig(StartConfig):
    """Everything about a segmentation run. `preprocess.image_size` is the crop in training, the window in testing."""

    job: Literal["segmentation"] = "segmentation"
    run: UserPath = "runs/segmentation"
    scenes: SceneConfig = SceneConfig()
    head: HeadConfig = HeadConfig()
    optim: SegmentationOptimConfig = SegmentationOptimConfig()
    eval: SceneEvalConfig = SceneEvalConfig()

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "SegmentationConfig":
        if self.data.channels != COLOURS:
            raise ValueError(f"segmentation is for images of colours; data.channels is {self.data.channels}")
        if self.data.kind != "auto" or isinstance(self.data.source, list):
            raise ValueError("data.source is one folder of images with label maps; leave data.kind out")
        if self.compute.shard != "none":
            raise ValueError(f"compute.shard={self.compute.shard} is for pretraining and finetuning; leave it out")
        return self

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks whose outputs are used. Raises ConfigError if the model does not have them."""
        depth, taps = self.model.shape[1], self.head.taps
        if taps is None:
            return default_taps(depth)
        if list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] != depth - 1:
            raise ConfigError(
                f"head.taps must ascend from 0 or more to the last block, {depth - 1}, as later blocks would learn "
                f"nothing; found {list(taps)}"
            )
        return taps

    @property
    def windows(self) -> Windows:
        """How test images are looked at. Raises ConfigError if windows would leave pixels out."""
        return self.eval.windows(self.preprocess.image_size)


@dataclass
class Segmentation:
    """What a step needs: the parts that learn (`state`) and the parts that do not."""

    config: SegmentationConfig
    group: Group
    device: torch.device
    precision: Precision
    model: Segmenter
    network: nn.Module  # the model as it is called: with DDP around it where there are other workers
    state: TrainingState
    flops_per_image: float


def build(config: SegmentationConfig, num_classes: int, worker: Worker | None = None) -> Segmentation:
    """Everything that a run needs, as it is before step 0."""
    group = (worker or Worker()).group
    device = choose_device()
    check_job(config, group, device)
    precision = choose_precision(config.compute.precision, device)
    torch.manual_seed(config.seed)
    model = synchronise_norms(make_segmenter(config, num_classes), group, device).to(device)
    model.backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    goes_on = group.first(lambda: has_begun(Path(config.run)))
    start = {} if goes_on else group.each(lambda: initial_weights(config, model))
    groups = layer_groups(model, config.model.shape[1], config.optim, undecayed=_undecayed(config))
    state = TrainingState.start(model, adamw(groups, config.optim), precision, teacher_of=None)
    state.numbers |= start
    network = replicate(model, group, device)
    if config.compute.compile:
        model.compile()
    flops = segmenter_flops(config, num_classes)
    return Segmentation(config, group, device, precision, model, network, state, flops)


def make_segmenter(config: SegmentationConfig, num_classes: int) -> Segmenter:
    """The model with the numbers that it begins with if no weights are named."""
    backbone = VisionTransformer(config.model, image_size=config.preprocess.image_size)
    return Segmenter(
        backbone,
        num_classes,
        taps=config.taps,
        channels=config.head.channels or backbone.embed_dim,
        auxiliary_channels=config.head.auxiliary_channels,
        auxiliary_weight=config.head.auxiliary_weight,
    )


def segmenter_flops(config: SegmentationConfig, num_classes: int) -> float:
    """FLOPs of a step, per image: a backward pass is twice its forward."""
    with torch.device("meta"):
        model = make_segmenter(config, num_classes).eval()
        image = torch.zeros(1, COLOURS, config.preprocess.image_size, config.preprocess.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return 3.0 * counter.get_total_flops()


def check_job(config: SegmentationConfig, group: Group, device: torch.device) -> None:
    """Raises ConfigError for what cannot work with the model as it is known now, before anything is built.

    Batch norm takes no variance of a single image; norms over all workers, which there are on GPUs, see all of theirs.
    """
    optim, norms_all = config.optim, device.type == "cuda" and group.size > 1
    smallest = optim.batch_size // (group.size * optim.accumulate)
    if smallest < (1 if norms_all else 2):
        raise ConfigError(
            f"optim.batch_size={optim.batch_size} over {group.size} workers and optim.accumulate={optim.accumulate} "
            f"leaves {smallest} images at once, of which batch norm cannot take a variance; accumulate less, or use "
            "fewer workers or larger batches"
        )
    if config.grid_side % 2:
        raise ConfigError(
            f"preprocess.image_size={config.preprocess.image_size} makes {config.grid_side} patches per side; the "
            "pyramid halves them: choose an even number"
        )
    _ = config.taps, config.windows


def _undecayed(config: SegmentationConfig) -> frozenset[str]:
    """Tokens whose weights do not decay; the official rule looks for them by names that they do not have there."""
    return frozenset() if config.optim.layer_rule == "official" else UNDECAYED
