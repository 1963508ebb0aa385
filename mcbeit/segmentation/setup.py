"""What a segmentation run is made of: its config, and the parts built from it before step 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.config import UserPath
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.group import Group
from mcbeit.image_files import COLOURS
from mcbeit.initial_weights import has_begun, preprocess_notes
from mcbeit.layer_decay import FinetuneOptimConfig, layer_groups
from mcbeit.optim import UNDECAYED, adamw
from mcbeit.parallel import replicate, synchronise_norms
from mcbeit.segmentation.judging import Windows
from mcbeit.segmentation.loading import is_segmenter, segmenter_of
from mcbeit.segmentation.scene_crops import SceneConfig
from mcbeit.segmentation.schedule import PolynomialConfig
from mcbeit.segmentation.segmenter import HeadConfig, Segmenter, default_taps
from mcbeit.segmentation.sliding import check_stride
from mcbeit.start import StartConfig, StartingPoint, initial_weights
from mcbeit.state import TrainingState
from mcbeit.supervised import EvalConfig
from mcbeit.trained_outputs import Outputs, compare, outputs_of, take_over
from mcbeit.vit import VisionTransformer
from mcbeit.weight_files import open_weights
from mcbeit.weights import weights_of
from mcbeit.worker import Worker


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

    PREPROCESS_KEYS: ClassVar[tuple[str, ...]] = ("image_size", "mean", "std")  # `scenes` says the rest
    SHAPE_KEYS: ClassVar[tuple[str, ...]] = ("head.taps", "head.channels", "head.auxiliary_channels")

    job: Literal["segmentation"] = "segmentation"
    run: UserPath = "runs/segmentation"
    scenes: SceneConfig = SceneConfig()
    head: HeadConfig = HeadConfig()
    optim: SegmentationOptimConfig = SegmentationOptimConfig()
    eval: SceneEvalConfig = SceneEvalConfig()

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "SegmentationConfig":
        self.check_colours()
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
    def shape(self) -> dict[str, Any]:
        """See `StartConfig`."""
        dim, depth, _ = self.model.shape
        values = (self.head.taps or default_taps(depth), self.head.channels or dim, self.head.auxiliary_channels)
        return dict(zip(self.SHAPE_KEYS, values, strict=True))

    def starting_point(self, init: str) -> StartingPoint:
        """See `StartConfig`. A segmenter tells its heads too; which blocks it uses is known of runs of ours alone."""
        stored = open_weights(init)
        if not is_segmenter(stored):
            return StartingPoint.of(weights_of(stored, num_heads=self.model.num_heads))
        loaded = segmenter_of(stored, num_heads=self.model.num_heads)
        main, auxiliary = loaded.model.decode_head.conv_seg, loaded.model.auxiliary_head.conv_seg
        values = (loaded.model.taps, main.in_channels, auxiliary.in_channels)
        keys = dict(zip(self.SHAPE_KEYS, values, strict=True))
        if loaded.run is None:
            del keys["head.taps"]
        known = (loaded.config, loaded.image_size, loaded.channels, loaded.preprocess)
        return StartingPoint(stored.origin, *known, keys)

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


def build(
    config: SegmentationConfig,
    num_classes: int,
    worker: Worker | None = None,
    *,
    classes: Sequence[str] | None = None,  # their names, if they are known
) -> Segmentation:
    """Everything that a run needs, as it is before step 0."""
    group = (worker or Worker()).group
    device = choose_device()
    check_job(config, group, device)
    precision = choose_precision(config.compute.precision, device)
    torch.manual_seed(config.seed)
    model = synchronise_norms(make_segmenter(config, num_classes), group, device).to(device)
    model.backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    goes_on = group.first(lambda: has_begun(Path(config.run)))
    start = {} if goes_on else group.each(lambda: _initial_weights(config, model, Outputs(num_classes, classes)))
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


def _initial_weights(config: SegmentationConfig, model: Segmenter, outputs: Outputs) -> dict[str, list[str]]:
    """Give the model the weights that the config names: a backbone, or a segmenter but for other classes."""
    if config.weights is None or not is_segmenter(stored := open_weights(config.weights)):
        return initial_weights(config, model)
    loaded = segmenter_of(
        stored, config=config.model, image_size=config.preprocess.image_size, num_heads=config.model.num_heads
    )
    verdict = compare(outputs_of(loaded.run, loaded.model.num_classes), outputs)
    last = [name for name in loaded.keys if ".conv_seg." in name]
    account = take_over(
        model,
        loaded.model.state_dict(),
        loaded.account,
        loaded.keys,
        last=last,
        called="the scores of the classes",
        verdict=verdict,
    )
    unknown = [] if loaded.run else [f"no file tells which blocks its segmenter uses: head.taps is {list(config.taps)}"]
    return {"init": [account, *unknown, *preprocess_notes(loaded.preprocess, config.preprocess)]}


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
