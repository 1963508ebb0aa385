"""Finetuning: all weights learn the classes of `train`, by the recipe and the code of `mcbeit train finetune-base`.

The run lies in OUT/runs and goes on where it stopped. The accuracy to quote is that of the last epoch; the best epoch
is beside it, with what it was chosen by.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.manifest import MAX_LISTED, Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Answers, Metric, accuracy, by_class, confusion_counts
from mcbeit.bench.tasks.recipe import BySize, RecipeConfig, curve_of, job_of, run_job_of
from mcbeit.bench.tasks.task import MAX_CONFUSED, BenchTask, Outcome
from mcbeit.epochs import LAST, read_predictions
from mcbeit.evaluation import UNREADABLE
from mcbeit.finetune import finetune, open_images
from mcbeit.finetune_setup import FinetuneConfig
from mcbeit.sources import ImageSource

BEST = "top1, best epoch"


class FinetuneTaskConfig(RecipeConfig):
    """The settings of `finetune`: a recipe, and what is changed of it, by the keys of `mcbeit train`."""

    JOB = FinetuneConfig
    BY_SIZE = BySize("finetune-base", "finetune-large")
    SECTIONS = ("augment", "compute", "crop", "eval", "model", "optim")

    label_fraction: float = Field(1.0, gt=0, le=1)  # of the images of each class; 0.01 and 0.1 are usual
    augment: dict[str, Any] = Field(default_factory=dict)
    compute: dict[str, Any] = Field(default_factory=dict)
    crop: dict[str, Any] = Field(default_factory=dict)
    # held_out: choose the best epoch on a share of the training images
    eval: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)

    def values(self, recipe: str) -> dict[str, Any]:
        """See `RecipeConfig`."""
        return {**super().values(recipe), "label_fraction": self.label_fraction}


def run(model: BenchModel, data: BenchData, config: FinetuneTaskConfig) -> Outcome:
    """Finetune on `train`, measure on `val`."""
    job, splits = make_job(model, data, config), data.splits()
    before = time.monotonic()
    summary = run_job_of(job, model, data, finetune, splits=splits)
    seconds = time.monotonic() - before
    folder, images = Path(job.run), open_images(job, splits)
    last = _Answered.of(folder, "last", images.test.labels)
    best = _Answered.of(folder, "best", images.test.labels)
    judged, num_classes = summary["judged"], images.num_classes
    metrics = {"top1": accuracy(last.correct, LAST), BEST: accuracy(best.correct, judged["best"]["selection"])}
    if "top5" in judged["last"]:
        metrics["top5"] = _share(judged["last"]["top5"], len(last.correct))
    return Outcome(
        primary="top1",
        metrics=metrics,
        used={
            "train": Used.in_training(len(images.train), summary["corrupt"]),
            "val": last.used(images.test.source),
        },
        per_class={"top1": by_class(last.correct, last.labels, num_classes)},
        confusion=confusion_counts(last.labels, last.guess, num_classes) if num_classes <= MAX_CONFUSED else None,
        curves=(curve_of(folder, "top-1 on the test images by epoch", {"": "top1"}),),
        answers=Answers.of("top1", last.correct),
        remarks=(_recipe(job), f"the best epoch is {judged['best']['epoch']:.3g}", f"run: {folder}"),
        seconds={"finetune": seconds},
    )


def make_job(model: BenchModel, data: BenchData, config: FinetuneTaskConfig) -> FinetuneConfig:
    """The job, on images as the model sees them."""
    return job_of(TASK, model, data, config, preprocess=model.encoder.spec.preprocess.model_dump())


class _Answered:
    """What the test images that can be read were taken for."""

    def __init__(self, predicted: Int64[np.ndarray, " image"], labels: Int64[np.ndarray, " image"]) -> None:
        self.is_read: Bool[np.ndarray, " image"] = predicted != UNREADABLE
        self.guess, self.labels = predicted[self.is_read], labels[self.is_read]
        self.correct: Bool[np.ndarray, " read"] = self.guess == self.labels

    @classmethod
    def of(cls, run: Path, which: str, labels: Int64[np.ndarray, " image"]) -> "_Answered":
        return cls(read_predictions(run, which), labels)

    def used(self, source: ImageSource) -> Used:
        missing = np.flatnonzero(~self.is_read)
        names = tuple(source.name(int(i)) for i in missing[:MAX_LISTED])
        return Used(num_used=len(self.correct), num_unreadable=len(missing), unreadable=names)


def _share(value: float, count: int) -> Metric:
    """A share of images of which the single answers are not kept."""
    return accuracy(np.arange(count) < round(value * count), LAST)


def _recipe(job: FinetuneConfig) -> str:
    """The recipe in a line; the run folder holds all of it."""
    optim, augment = job.optim, job.augment
    length = f"{optim.steps} steps" if optim.steps else f"{optim.epochs:g} epochs"
    return (
        f"{length}, batch {optim.batch_size}, lr {optim.lr:g}, layer decay {optim.layer_decay:g} "
        f"({optim.layer_rule}), weight decay {optim.weight_decay:g}, drop path {job.model.drop_path:g}, mixup "
        f"{augment.mixup:g}, cutmix {augment.cutmix:g}, erasing {augment.erase:g}, RandAugment {augment.policy}"
    )


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {"optim": {"steps": 8, "batch_size": 16}},
    "short": {"optim": {"epochs": 10, "warmup_epochs": 1, "batch_size": 128, "lr": 1e-3}},
    "paper": {},
}
TASK = BenchTask("finetune", 1, "finetuning of all weights", "weights", "labelled", FinetuneTaskConfig, PRESETS, run)
