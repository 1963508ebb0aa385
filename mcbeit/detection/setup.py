"""What a detection run is made of: its config, and the parts built from it before step 0."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.config import UserPath
from mcbeit.detection.coco_scores import Backend
from mcbeit.detection.large_scale_jitter import JitterConfig
from mcbeit.detection.loading import LoadedDetector, detector_of, is_detector
from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.regions import BOX_SIDE, MASK_SIDE, POSITIVE
from mcbeit.detection.window_weights import fit_windowed, refit_windowed
from mcbeit.detection.windowed import NUM_STAGES, WINDOW, WindowedBackbone
from mcbeit.device import Precision, choose_device, choose_precision
from mcbeit.errors import ConfigError
from mcbeit.group import Group
from mcbeit.image_files import COLOURS
from mcbeit.initial_weights import (
    check_agrees,
    check_channels,
    difference,
    has_begun,
    place_of_weights,
    preprocess_notes,
    segmenter_notes,
)
from mcbeit.layer_decay import level_of, level_scales
from mcbeit.optim import Beta, OptimConfig, adamw
from mcbeit.parallel import replicate, synchronise_norms
from mcbeit.start import StartConfig, StartingPoint
from mcbeit.state import TrainingState
from mcbeit.supervised import EvalConfig
from mcbeit.trained_outputs import Outputs, compare, outputs_of, take_over
from mcbeit.weight_files import open_weights
from mcbeit.weights import weights_of
from mcbeit.worker import Worker

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
UNDECAYED = ("pos_embed", "relative_position_bias_table")
LAST = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")  # with outputs for each class


class DetectionOptimConfig(OptimConfig):
    """The optimiser; the defaults are mc-BEiT's for ViT-B on COCO, 25 epochs."""

    steps: int | None = Field(46_093, ge=1)  # null: by epochs
    epochs: float = Field(25, gt=0)
    batch_size: int = Field(64, ge=1)  # images per step, over all workers
    warmup_fraction: float = Field(0.01, ge=0, lt=1)  # of all steps
    warmup_epochs: float = Field(0, ge=0, le=0)  # by the fraction here
    warmup_ratio: float = Field(0.001, ge=0, le=1)  # of the rate, at step 0
    lr: float = Field(8e-5, gt=0)
    min_lr: float = Field(0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.1, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)  # of the rate, per block towards the pixels; ViTDet: 0.7
    clip_grad: float | None = Field(None, gt=0)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """A cosine over all steps; before it, a straight line to where the cosine is at the end of the warm-up."""
        place, warmup = step / self.total_steps(steps_per_epoch), self.warmup_fraction
        if place >= warmup:
            return self._cosine(place)
        return self.lr * self.warmup_ratio + (self._cosine(warmup) - self.lr * self.warmup_ratio) * place / warmup

    def _cosine(self, place: float) -> float:
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * place))


class DetectionEvalConfig(EvalConfig):
    """How test images are looked at, and by what they are scored."""

    batch_size: int = Field(1, ge=1)  # images at once
    backend: Backend = "pycocotools"  # fast: faster-coco-eval, with the same numbers to six digits


class DetectionConfig(StartConfig):
    """Everything about a detection run. `preprocess.image_size` is the square that images are brought to."""

    MODEL_DEFAULTS: ClassVar[dict[str, Any]] = {}  # tables as the weights have them: shared ones make two, as published
    PREPROCESS_KEYS: ClassVar[tuple[str, ...]] = ("image_size", "mean", "std")  # `jitter` says the rest
    SHAPE_KEYS: ClassVar[tuple[str, ...]] = (
        *("window", "detector.pyramid", "detector.channels", "detector.head_dim", "detector.anchor_scale"),
    )

    job: Literal["detection"] = "detection"
    run: UserPath = "runs/detection"
    window: int = Field(WINDOW, ge=1)  # patches per side of what all blocks but the last of each quarter attend in
    jitter: JitterConfig = JitterConfig()
    detector: DetectorConfig = DetectorConfig()
    optim: DetectionOptimConfig = DetectionOptimConfig()
    eval: DetectionEvalConfig = DetectionEvalConfig()

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "DetectionConfig":
        self.check_colours()
        if self.data.kind != "auto" or isinstance(self.data.source, list):
            raise ValueError("data.source is one folder of annotated images; leave data.kind out")
        if self.compute.shard != "none":
            raise ValueError(f"compute.shard={self.compute.shard} is for pretraining and finetuning; leave it out")
        if self.model.shape[1] % NUM_STAGES:
            raise ValueError(
                f"features are taken after each quarter of the blocks: model.depth must be a multiple of {NUM_STAGES}, "
                f"found {self.model.shape[1]}"
            )
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """See `StartConfig`."""
        found = self.detector
        values = (self.window, found.pyramid, found.channels, found.head_dim, found.anchor_scale)
        return dict(zip(self.SHAPE_KEYS, values, strict=True))

    def starting_point(self, init: str) -> StartingPoint:
        """See `StartConfig`. A detector tells its windows and heads too; its anchors are known of runs of ours alone.

        Every detector has absolute positions, whether the config of a run names them or not.
        """
        stored = open_weights(init)
        if not is_detector(stored):
            return StartingPoint.of(weights_of(stored, num_heads=self.model.num_heads))
        loaded = detector_of(stored)
        model, detector, backbone = loaded.shape.model, loaded.shape.detector, loaded.model.backbone
        if "position" in self.model.model_fields_set and self.model.is_relative == model.is_relative:
            model = model.model_copy(update={"position": self.model.position})
        values = (backbone.window[0], detector.pyramid, detector.channels, detector.head_dim, detector.anchor_scale)
        keys = dict(zip(self.SHAPE_KEYS, values, strict=True))
        if loaded.run is None:
            del keys["detector.anchor_scale"]
        if all(backbone.is_global):
            del keys["window"]
        return StartingPoint(stored.origin, model, loaded.image_size, COLOURS, loaded.preprocess, keys)

    def differences(self, start: StartingPoint) -> Iterator[str]:
        """See `StartConfig`. No window is larger than the image; a table per block cannot become two for all."""
        keys, side = dict(start.keys), self.grid_side
        if "window" in keys and min(keys["window"], side) == min(self.window, side):
            del keys["window"]
        yield from super().differences(replace(start, keys=keys))
        tables = self.model.bias_tables, start.model.bias_tables
        if start.keys and self.model.is_relative and tables == ("shared", "per-block"):
            yield difference("model.bias_tables", *tables)


@dataclass
class Detection:
    """What a step needs: the parts that learn (`state`) and the parts that do not."""

    config: DetectionConfig
    group: Group
    device: torch.device
    precision: Precision
    model: MaskRCNN
    network: nn.Module  # the model as it is called: with DDP around it where there are other workers
    state: TrainingState
    flops_per_image: float


def build(
    config: DetectionConfig,
    num_classes: int,
    worker: Worker | None = None,
    *,
    classes: Sequence[str] | None = None,  # their names, if they are known
) -> Detection:
    """Everything that a run needs, as it is before step 0."""
    group = (worker or Worker()).group
    device = choose_device()
    precision = choose_precision(config.compute.precision, device)
    torch.manual_seed(config.seed)
    model = synchronise_norms(make_detector(config, num_classes), group, device).to(device)
    model.backbone.grad_checkpointing = config.compute.gradient_checkpointing
    goes_on = group.first(lambda: has_begun(Path(config.run)))
    start = {} if goes_on else group.each(lambda: _initial_weights(config, model, Outputs(num_classes, classes)))
    groups = parameter_groups(model, config.model.shape[1], config.optim)
    state = TrainingState.start(model, adamw(groups, config.optim), precision, teacher_of=None)
    state.numbers |= start
    network = replicate(model, group, device)
    if config.compute.compile:
        model.backbone.compile()
    return Detection(config, group, device, precision, model, network, state, detector_flops(config))


def make_detector(config: DetectionConfig, num_classes: int) -> MaskRCNN:
    """The model with the numbers that it begins with if no weights are named."""
    backbone = WindowedBackbone(config.model, image_size=config.preprocess.image_size, window=config.window)
    return MaskRCNN(backbone, num_classes, config.detector, preprocess=config.preprocess)


def check_job(config: DetectionConfig, group: Group) -> None:
    """Raise ConfigError for what cannot work with the model as it is known now, before anything is built.

    A worker that computed its share in fewer parts than others would not come to the batch norms that they share.
    """
    optim, least = config.optim, config.optim.batch_size // group.size
    if optim.accumulate > least:
        raise ConfigError(
            f"optim.batch_size={optim.batch_size} over {group.size} workers leaves {least} images to some of them, "
            f"which optim.accumulate={optim.accumulate} cannot split; accumulate less, or use fewer workers or larger "
            "batches"
        )
    with torch.device("meta"):
        make_detector(config, 1)


def _initial_weights(config: DetectionConfig, model: MaskRCNN, outputs: Outputs) -> dict[str, list[str]]:
    """Give the model the weights that the config names: a backbone, or a detector but for other classes."""
    if config.weights is None:
        return {"init": ["starts from random numbers"]}
    stored = open_weights(config.weights)
    if is_detector(stored):
        return {"init": list(_take_detector(config, model, detector_of(stored), outputs))}
    weights = weights_of(stored, num_heads=config.model.num_heads)
    check_agrees(config.model, weights)
    check_channels(config.preprocess.channels, weights)
    state, account = fit_windowed(weights, config.model, config.preprocess.image_size, window=config.window)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            parameter.copy_(state[name])
    told = [f"starts from {place_of_weights(weights)}: {account.summary()}", *segmenter_notes(weights)]
    return {"init": [*told, *preprocess_notes(weights.preprocess, config.preprocess)]}


def _take_detector(config: DetectionConfig, model: MaskRCNN, loaded: LoadedDetector, outputs: Outputs) -> Iterator[str]:
    """Give the model a detector; what a person should hear."""
    account, state = loaded.account, loaded.model.state_dict()
    for name, part in refit_windowed(loaded.model.backbone, model.backbone).items():
        state[f"backbone.{name}"] = part.value
        account.note(loaded.keys[f"backbone.{part.source}"], part.fate, part.rule)
    verdict = compare(outputs_of(loaded.run, loaded.shape.num_classes), outputs)
    last = [name for name in loaded.keys if name.startswith(LAST)]
    called = "the scores, boxes and masks of the classes"
    yield take_over(model, state, account, loaded.keys, last=last, called=called, verdict=verdict)
    if loaded.run is None:
        yield f"no file tells the anchors of its detector: detector.anchor_scale is {config.detector.anchor_scale}"
    yield from preprocess_notes(loaded.preprocess, config.preprocess)


def parameter_groups(model: nn.Module, depth: int, config: DetectionOptimConfig) -> list[dict[str, Any]]:
    """All parameters: those of norms, absolute positions and bias tables are not weight-decayed, all others are.

    So does the published run: other biases and scales of layers decay too.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    scales = level_scales(depth, config.layer_decay)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        is_spared = id(parameter) in norms or name.rpartition(".")[2] in UNDECAYED
        scale = scales[level_of(name.removeprefix("backbone."), depth, "official")]
        new = {"params": [], "lr_scale": scale, "weight_decay": 0.0 if is_spared else config.weight_decay}
        groups.setdefault((scale, is_spared), new)["params"].append(parameter)
    return list(groups.values())


def detector_flops(config: DetectionConfig) -> float:
    """FLOPs of a step, per image in which so many objects are found that a quarter of its regions has masks.

    A backward pass is twice its forward.
    """
    regions, channels = config.detector.region_samples, config.detector.channels
    with torch.device("meta"):
        model = make_detector(config, 1).eval()
        image = torch.zeros(1, COLOURS, config.preprocess.image_size, config.preprocess.image_size)
        boxes = torch.zeros(regions, channels, BOX_SIDE, BOX_SIDE)
        masks = torch.zeros(round(regions * POSITIVE), channels, MASK_SIDE, MASK_SIDE)
    heads = model.roi_heads
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.rpn.head(list(model.pyramid(model.backbone(image)).values()))
        heads.box_predictor(heads.box_head(boxes))
        heads.mask_predictor(heads.mask_head(masks))
    return 3.0 * counter.get_total_flops()
