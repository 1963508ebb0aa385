"""Detection of objects with boxes and masks: read this file first.

`detect` goes from a backbone and images marked in COCO's format to Mask R-CNN. The backbone attends in windows, and
globally at the end of each quarter of its blocks (`windowed.py`); the maps after each quarter become a pyramid
(`pyramid.py`), proposals (`proposals.py`), boxes and masks (`regions.py`). A step jitters the scale of images
(`large_scale_jitter.py`); every so often the test images are searched (`judging.py`) and scored (`coco_scores.py`). The
loop is that of `supervised.py`.

    mcbeit train coco-maskrcnn-base init=runs/mcbeit-base data.source=/data/coco
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mcbeit.agreement import NO_FLAGS, Flags
from mcbeit.atomic import write_json
from mcbeit.data import Batch, auto_workers
from mcbeit.detection.coco import CocoSplits, open_coco_splits
from mcbeit.detection.dataset import DetectionDataset
from mcbeit.detection.judging import DetectedEpoch, check_scorable, judge
from mcbeit.detection.setup import Detection, DetectionConfig, build, check_job
from mcbeit.epochs import take_note
from mcbeit.meter import StepResult
from mcbeit.optim import steps_per_epoch
from mcbeit.parallel import share_buffers
from mcbeit.runfolder import RunFolder, open_run, writing
from mcbeit.start import ready
from mcbeit.step import take_step
from mcbeit.supervised import SupervisedJob, learn
from mcbeit.trained_outputs import keep_classes
from mcbeit.worker import Worker

FILES = {
    "last": ("results.json", "scores.json"),
    "best": ("results-best.json", "scores-best.json"),
}  # in the run folder


def detect(
    config: DetectionConfig, *, resume: bool = False, worker: Worker | None = None, splits: CocoSplits | None = None
) -> dict[str, Any]:
    """Start or resume a run and finish it; returns its summary, which is also RUN/summary.json.

    `splits` are the images, where they are not those that the config names. Raises ConfigError, DataError,
    WeightsError or RunError, before any work where it can be known, and Interrupted if it was asked to stop. Every
    process of a group calls it, each with its own `worker`.
    """
    with (worker or Worker()).at_work(config.run, threads=config.compute.threads) as (here, folder):
        return _detect(config.model_copy(update={"run": folder}), splits, resume=resume, worker=here)


def _detect(config: DetectionConfig, given: CocoSplits | None, *, resume: bool, worker: Worker) -> dict[str, Any]:
    group = worker.group
    config = ready(config, worker)
    group.first(lambda: check_job(config, group))
    splits = given or group.each(lambda: open_coco_splits(str(config.data.required_source())))
    group.first(lambda: check_scorable(splits.val, config.eval.backend))
    per_epoch = group.each(lambda: steps_per_epoch(len(splits.train), config.optim))
    run = group.first(lambda: open_run(config, splits.train, resume=resume, named=worker.named))
    if (summary := group.first(run.summary)) is not None:
        return summary
    classes = splits.train.classes
    group.first(lambda: keep_classes(run.path, classes))
    parts = build(config, len(classes), worker, classes=classes)
    return learn(DetectionJob(parts, splits), run, worker, per_epoch=per_epoch)


class DetectionJob(SupervisedJob):
    """What the loop asks of detection."""

    def __init__(self, parts: Detection, splits: CocoSplits) -> None:
        super().__init__(parts, splits.train, splits.val)
        self.parts, self.splits = parts, splits
        self.notes += self.norm_notes()

    def describe(self, per_epoch: int) -> str:
        """See `SupervisedJob`."""
        optim, num_classes = self.parts.config.optim, len(self.source.classes)
        return (
            f"{len(self.source)} images of {num_classes} class{'es' * (num_classes != 1)} with "
            f"{self.splits.train.num_objects} objects, {per_epoch} steps per epoch, batch {optim.batch_size}, "
            f"lr {optim.lr:g}, {self.setting()}"
        )

    def batches(self, steps: range) -> Iterable[Batch]:
        """See `SupervisedJob`."""
        config = self.parts.config
        dataset = DetectionDataset(
            self.splits.train,
            seed=config.seed,
            size=config.preprocess.image_size,
            jitter=config.jitter,
            num_dice=self.parts.model.num_dice,
        )
        return self.loader(dataset, steps)

    def take_step(self, batch: Batch, lr: float, flags: Flags = NO_FLAGS) -> StepResult:
        """See `SupervisedJob`."""
        parts, optim = self.parts, self.parts.config.optim
        parts.model.train()
        measured: dict[str, Tensor] = {}

        def loss(piece: Annotated) -> Float[Tensor, ""]:
            found = losses_of(parts, piece)
            measured.update({f"{name}_loss": value.detach() for name, value in found.items()})
            return torch.stack(list(found.values())).sum()

        pieces = annotated(batch.to(self.device)).split(optim.accumulate)
        result = take_step(parts.state, parts.network, parts.group, pieces, loss, optim, lr=lr, flags=flags)
        return result._replace(measurements=measured)  # of the last piece of this worker

    def judge(self, run: RunFolder, number: float) -> tuple[DetectedEpoch, bool]:
        """See `SupervisedJob`."""
        config = self.parts.config
        share_buffers(self.parts.model, self.group, self.device)
        epoch = judge(
            self.parts.model,
            self.splits.val,
            self.precision,
            number=number,
            group=self.group,
            num_workers=auto_workers(config.data, sharing=self.group.local_size),
            batch_size=config.eval.batch_size,
            backend=config.eval.backend,
        )
        is_best = take_note(self.state.numbers, epoch)
        self.group.first(lambda: keep_results(run.path, epoch, is_best=is_best))
        return epoch, is_best


class Annotated(NamedTuple):
    """Images with what is marked in them."""

    images: UInt8[Tensor, "batch 3 size size"]
    targets: list[dict[str, Tensor]]
    dice: Float[Tensor, "batch die"]

    @property
    def num_rows(self) -> int:
        """The number of images."""
        return len(self.images)

    def split(self, num_parts: int) -> list["Annotated"]:
        """In parts that are as equal as can be; no part is empty."""
        places = torch.arange(len(self.images)).tensor_split(num_parts)
        return [
            Annotated(
                self.images[part[0] : part[-1] + 1],
                [self.targets[i] for i in part.tolist()],
                self.dice[part[0] : part[-1] + 1],
            )
            for part in places
            if len(part)
        ]


def annotated(batch: Batch) -> Annotated:
    """A batch of a `DetectionDataset`."""
    return Annotated(batch.views[0], list(batch.targets), batch.dice)


def losses_of(parts: Detection, piece: Annotated) -> dict[str, Float[Tensor, ""]]:
    """The parts of the loss, in float32."""
    with parts.precision.autocast(parts.device):
        found = parts.network(piece.images, piece.targets, piece.dice)
    return {name: value.float() for name, value in found.items()}


def keep_results(run: Path, epoch: DetectedEpoch, *, is_best: bool) -> None:
    """Write what was found and its scores: as the last ones, and as the best ones if they are."""
    with writing("the detections", run):
        for which in ("last", "best") if is_best else ("last",):
            results, scores = FILES[which]
            epoch.results.write(run / results)
            write_json(run / scores, epoch.as_json())
