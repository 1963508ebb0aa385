"""Segmentation by a linear layer on frozen patch features: batch norm and a 1x1 convolution, after DINOv2.

Only patch features are asked for, so weights in torch, an exported graph and a service can all be measured. The head
lies in OUT/runs and goes on where it stopped.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.bench.data import BenchData
from mcbeit.bench.manifest import Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.tasks.scene_scores import scene_outcome
from mcbeit.bench.tasks.scene_windows import FrozenEncoder, Grids, SceneTaskConfig, WindowDataset
from mcbeit.bench.tasks.task import BenchTask, Outcome
from mcbeit.data import Batch, auto_workers
from mcbeit.device import PRECISIONS, Precision
from mcbeit.encoder import EncoderSpec
from mcbeit.epochs import LAST, take_note
from mcbeit.errors import BenchError
from mcbeit.group import ALONE, Group
from mcbeit.meter import StepResult
from mcbeit.optim import adamw, steps_per_epoch
from mcbeit.runfolder import RunFolder, open_run
from mcbeit.segmentation.judging import ScoredEpoch, scored
from mcbeit.segmentation.scene_crops import SceneConfig
from mcbeit.segmentation.scenes import Scenes
from mcbeit.segmentation.schedule import PolynomialConfig
from mcbeit.segmentation.segmenter import pixel_loss
from mcbeit.segmentation.training import Labelled, keep_areas, labelled, read_kept_areas
from mcbeit.segmentation.upernet import resized
from mcbeit.state import TrainingState
from mcbeit.step import take_step
from mcbeit.supervised import EvalConfig, SupervisedConfig, SupervisedJob, learn
from mcbeit.worker import Worker


class LinearSceneConfig(SceneTaskConfig):
    """The settings of `segmentation-linear`."""

    steps: int = Field(40_000, ge=1)
    crops: int = Field(16, ge=2)  # per step
    lr: float = Field(1e-3, gt=0)  # of AdamW; it falls linearly to 0
    weight_decay: float = Field(1e-4, ge=0)
    warmup_steps: int = Field(1500, ge=0)
    scale: tuple[float, float] = (0.5, 2.0)  # of training images
    max_class_share: float = Field(0.75, gt=0, le=1)  # of the labelled pixels of a crop

    @model_validator(mode="after")
    def _can_be_run(self) -> "LinearSceneConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be ordered and positive, found {list(self.scale)}")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be less than steps={self.steps}; set both")
        return self


class LinearHead(nn.Module):
    """Class scores from patch features, at their size."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)
        self.conv_seg = nn.Conv2d(dim, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]  # there is one

    def forward(self, grids: Grids) -> Float[Tensor, "window class row column"]:
        return self.conv_seg(self.bn(grids))


class HeadRun(SupervisedConfig):
    """The run of a head: all that its numbers depend on."""

    job: Literal["segmentation-linear"] = "segmentation-linear"
    depends_on: str  # a hash of the encoder, the images and the settings
    optim: PolynomialConfig


class HeadParts(NamedTuple):
    """A head before step 0."""

    config: HeadRun
    head: LinearHead
    state: TrainingState
    flops_per_image: float  # those of the encoder are not known
    group: Group = ALONE
    device: torch.device = torch.device("cpu")
    precision: Precision = PRECISIONS["fp32"]


def build_head(config: HeadRun, spec: EncoderSpec, num_classes: int) -> HeadParts:
    """A head for the patch features of an encoder."""
    torch.manual_seed(config.seed)
    head = LinearHead(spec.patch_dim, num_classes)
    groups = [{"params": list(head.parameters()), "weight_decay": config.optim.weight_decay}]
    state = TrainingState.start(head, adamw(groups, config.optim), PRECISIONS["fp32"], teacher_of=None)
    return HeadParts(config, head, state, 6.0 * spec.grid[0] * spec.grid[1] * head.conv_seg.weight.numel())


class LinearSegmentation(SupervisedJob):
    """What the loop asks of a head."""

    def __init__(self, parts: HeadParts, frozen: FrozenEncoder, scenes: Scenes, task: LinearSceneConfig) -> None:
        super().__init__(parts, scenes.train, scenes.val)
        self.head, self.frozen, self.scenes, self.task = parts.head, frozen, scenes, task

    def describe(self, per_epoch: int) -> str:
        """See `SupervisedJob`."""
        return f"{len(self.source)} scenes, features of {self.frozen.encoder.spec.name}, {self.setting()}"

    def batches(self, steps: range) -> Iterable[Batch]:
        """See `SupervisedJob`."""
        scenes = SceneConfig(
            short_side=self.frozen.short_side,
            long_side=self.frozen.scenes.long_side,
            scale=self.task.scale,
            max_class_share=self.task.max_class_share,
            distort_colors=False,
        )
        preprocess = self.frozen.encoder.spec.preprocess
        return self.loader(
            WindowDataset(self.scenes.train, seed=self.config.seed, scenes=scenes, preprocess=preprocess), steps
        )

    def take_step(self, batch: Batch, lr: float, flags: Flags = NO_FLAGS) -> StepResult:
        """See `SupervisedJob`."""
        self.head.train()

        def loss(piece: Labelled) -> Float[Tensor, ""]:
            grids = torch.cat([self.frozen.grids(part) for part in piece.images.split(self.task.batch_size)])
            return pixel_loss(self.head(grids), piece.labels)

        return take_step(
            self.state, self.head, self.group, [labelled(batch)], loss, self.config.optim, lr=lr, flags=flags
        )

    @torch.no_grad()
    def score(self, grids: Grids) -> Float[Tensor, "window class size size"]:
        """The scores of every pixel of windows."""
        self.head.eval()
        return resized(self.head(grids), (self.frozen.size, self.frozen.size))

    def judge(self, run: RunFolder, number: float) -> tuple[ScoredEpoch, bool]:
        """See `SupervisedJob`."""
        each = self.frozen.judge(self.scenes.val, self.score, num_workers=auto_workers(self.config.data))
        epoch = scored(number, each, self.scenes.val)
        is_best = take_note(self.state.numbers, epoch)
        keep_areas(run.path, epoch, is_best=is_best)
        return epoch, is_best


def run(model: BenchModel, data: BenchData, config: LinearSceneConfig) -> Outcome:
    """Train the head on `train`, measure on `val`."""
    scenes, frozen, before = data.scenes(), FrozenEncoder(model.encoder, config), time.monotonic()
    job = make_run(model, data, config)
    if config.crops > len(scenes.train):
        raise BenchError(
            f"segmentation-linear.crops={config.crops}, but {data.name} has only {len(scenes.train)} training images; "
            "set it to at most as many"
        )
    per_epoch = steps_per_epoch(len(scenes.train), job.optim)
    worker = Worker(stop=model.cache.stop)
    with worker.at_work(job.run, threads=model.config.threads):
        folder = open_run(job, scenes.train, resume=True)
        parts = build_head(job, model.encoder.spec, scenes.train.num_classes)
        head = LinearSegmentation(parts, frozen, scenes, config)
        summary = folder.summary() or learn(head, folder, worker, per_epoch=per_epoch)
        folder.go_on(head.state)
    return scene_outcome(
        scenes,
        read_kept_areas(Path(job.run), "last"),
        lambda pixels: frozen.find(pixels, head.score),
        seed=config.seed,
        selection=LAST,
        train=Used.in_training(len(scenes.train), summary["corrupt"]),
        seconds={"train and judge": time.monotonic() - before},
        remarks=(f"{config.steps} steps of {config.crops} crops, lr {config.lr:g}; run: {job.run}",),
    )


def make_run(model: BenchModel, data: BenchData, config: LinearSceneConfig) -> HeadRun:
    """The run, in a folder whose name changes with anything that its numbers depend on."""
    manifests = [model.cache.manifest(data, split).model_dump(mode="json") for split in TASK.splits]
    told = [
        TASK.version,
        config.model_dump(mode="json"),
        model.facts().model_dump(mode="json", exclude={"source"}),
        manifests,
    ]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    optim = PolynomialConfig(
        steps=config.steps,
        batch_size=config.crops,
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
    )
    return HeadRun(
        run=str(model.out / "runs" / f"segmentation-linear-{digest}"),
        depends_on=digest,
        seed=config.seed,
        optim=optim,
        data=model.config.data.model_copy(update={"source": data.path}),
        eval=EvalConfig(every_epochs=1e9),
    )


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {"steps": 30, "crops": 8, "warmup_steps": 3},
    "short": {"steps": 1000, "warmup_steps": 100},
    "paper": {},
}
TASK = BenchTask(
    "segmentation-linear",
    1,
    "semantic segmentation, a linear layer on frozen patch features",
    "embedding",
    "scenes",
    LinearSceneConfig,
    PRESETS,
    run,
)
