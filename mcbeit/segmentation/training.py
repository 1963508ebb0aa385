"""Segmentation: read this file first.

`segment` goes from a backbone and images with label maps to a model that knows the class of every pixel. Four blocks of
the backbone feed UperNet (`segmenter.py`, `upernet.py`); a step crops and distorts images (`scene_crops.py`) and learns
their labels, layers near the pixels more slowly; every so often windows slide over the test images (`judging.py`,
`sliding.py`) and the mean IoU of all of them is taken (`overlap.py`). The loop is that of `supervised.py`.

    mcbeit train ade20k-upernet-base init=runs/mcbeit-base data.source=/data/ADEChallengeData2016
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.atomic import write_bytes
from mcbeit.data import Batch, auto_workers
from mcbeit.device import choose_device
from mcbeit.epochs import take_note
from mcbeit.meter import StepResult
from mcbeit.optim import steps_per_epoch
from mcbeit.parallel import share_buffers
from mcbeit.runfolder import RunFolder, open_run, writing
from mcbeit.segmentation.judging import ScoredEpoch, judge
from mcbeit.segmentation.scene_crops import SceneDataset
from mcbeit.segmentation.scenes import Scenes, open_scenes
from mcbeit.segmentation.setup import Segmentation, SegmentationConfig, build, check_job
from mcbeit.start import ready
from mcbeit.step import take_step
from mcbeit.supervised import SupervisedJob, learn
from mcbeit.trained_outputs import keep_classes
from mcbeit.worker import Worker

AREAS = {"last": "areas.npy", "best": "areas-best.npy"}  # in the run folder, of the test images


def segment(
    config: SegmentationConfig, *, resume: bool = False, worker: Worker | None = None, scenes: Scenes | None = None
) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    `scenes` are the images, where they are not those that the config names. Raises ConfigError, DataError,
    WeightsError or RunError, before any work where it can be known, and Interrupted if it was asked to stop. Every
    process of a group calls it, each with its own `worker`.
    """
    with (worker or Worker()).at_work(config.run, threads=config.compute.threads) as (here, folder):
        return _segment(config.model_copy(update={"run": folder}), scenes, resume=resume, worker=here)


def _segment(config: SegmentationConfig, given: Scenes | None, *, resume: bool, worker: Worker) -> dict[str, Any]:
    group = worker.group
    config = ready(config, worker)
    check_job(config, group, choose_device())
    scenes = given or group.each(lambda: open_scenes(_place(config)))
    per_epoch = group.each(lambda: steps_per_epoch(len(scenes.train), config.optim))
    run = group.first(lambda: open_run(config, scenes.train, resume=resume, named=worker.named))
    if (summary := group.first(run.summary)) is not None:
        return summary
    group.first(lambda: keep_classes(run.path, scenes.train.classes))
    parts = build(config, scenes.train.num_classes, worker, classes=scenes.train.classes)
    return learn(SegmentationJob(parts, scenes), run, worker, per_epoch=per_epoch)


def _place(config: SegmentationConfig) -> str:
    place = config.data.required_source()
    assert isinstance(place, str)  # which the config has checked
    return place


class SegmentationJob(SupervisedJob):
    """What the loop asks of segmentation."""

    def __init__(self, parts: Segmentation, scenes: Scenes) -> None:
        super().__init__(parts, scenes.train, scenes.val)
        self.parts, self.scenes = parts, scenes
        self.notes += self.norm_notes()

    def describe(self, per_epoch: int) -> str:
        """See `SupervisedJob`."""
        optim = self.parts.config.optim
        return (
            f"{len(self.source)} scenes of {self.scenes.train.num_classes} classes, {per_epoch} steps per epoch, batch "
            f"{optim.batch_size}, lr {optim.lr:g}, layer decay {optim.layer_decay:g}, {self.setting()}"
        )

    def batches(self, steps: range) -> Iterable[Batch]:
        """See `SupervisedJob`."""
        config = self.parts.config
        dataset = SceneDataset(
            self.scenes.train,
            seed=config.seed,
            scenes=config.scenes,
            preprocess=config.preprocess,
            num_dice=self.parts.model.num_dice,
        )
        return self.loader(dataset, steps)

    def take_step(self, batch: Batch, lr: float, flags: Flags = NO_FLAGS) -> StepResult:
        """See `SupervisedJob`."""
        parts, optim = self.parts, self.parts.config.optim
        parts.model.train()
        pieces = labelled(batch.to(self.device)).split(optim.accumulate)

        def loss(piece: Labelled) -> Float[Tensor, ""]:
            return loss_of(parts, piece)

        return take_step(parts.state, parts.network, parts.group, pieces, loss, optim, lr=lr, flags=flags)

    def judge(self, run: RunFolder, number: float) -> tuple[ScoredEpoch, bool]:
        """See `SupervisedJob`."""
        config = self.parts.config
        share_buffers(self.parts.model, self.group, self.device)
        epoch = judge(
            self.parts.model,
            self.scenes.val,
            config.scenes,
            config.preprocess,
            config.windows,
            self.precision,
            number=number,
            group=self.group,
            num_workers=auto_workers(config.data, sharing=self.group.local_size),
        )
        is_best = take_note(self.state.numbers, epoch)
        self.group.first(lambda: keep_areas(run.path, epoch, is_best=is_best))
        return epoch, is_best


class Labelled(NamedTuple):
    """Crops of scenes with their labels."""

    images: Float[Tensor, "batch channel height width"]
    labels: Int64[Tensor, "batch height width"]
    dice: Float[Tensor, "batch die"]

    @property
    def num_rows(self) -> int:
        """The number of crops."""
        return len(self.images)

    def split(self, num_parts: int) -> list["Labelled"]:
        """In parts that are as equal as can be; no part is empty."""
        parts = zip(*(tensor.tensor_split(num_parts) for tensor in self), strict=True)
        return [part for part in (Labelled(*tensors) for tensors in parts) if part.num_rows]


def labelled(batch: Batch) -> Labelled:
    """A batch of a `SceneDataset`."""
    images, labels = batch.views
    return Labelled(images, labels[:, 0].long(), batch.dice)


def loss_of(parts: Segmentation, piece: Labelled) -> Float[Tensor, ""]:
    """The loss of both heads, in nats, in float32."""
    with parts.precision.autocast(parts.device):
        scores = parts.network(piece.images, piece.dice)
    return parts.model.loss(scores, piece.labels)


def keep_areas(run: Path, epoch: ScoredEpoch, *, is_best: bool) -> None:
    """Write the areas of each test image: as the last ones, and as the best ones if they are."""
    buffer = io.BytesIO()
    np.save(buffer, epoch.areas)
    with writing("the areas of the test images", run):
        for which in ("last", "best") if is_best else ("last",):
            write_bytes(run / AREAS[which], buffer.getvalue())


def read_kept_areas(run: Path, which: str) -> Int64[np.ndarray, "image 3 class"]:
    """The areas of each test image; `which` is last or best."""
    found: np.ndarray = np.load(run / AREAS[which])
    return found
