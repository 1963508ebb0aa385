"""Segmentation with all weights learning: UperNet, by the recipe and the code of `mcbeit train ade20k-upernet-base`.

The run lies in OUT/runs and goes on where it stopped. The mean IoU to quote is that of the last epoch.
"""

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.manifest import Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Curve
from mcbeit.bench.tasks.recipe import BySize, RecipeConfig, job_of
from mcbeit.bench.tasks.scene_scores import PRIMARY, scene_metrics, scene_outcome
from mcbeit.bench.tasks.task import BenchTask, Outcome
from mcbeit.data import auto_workers
from mcbeit.device import choose_device, choose_precision
from mcbeit.errors import BenchError
from mcbeit.group import ALONE
from mcbeit.runfolder import read_records
from mcbeit.segmentation.judging import judge
from mcbeit.segmentation.judging import segment as find_classes
from mcbeit.segmentation.loading import holds_segmenter, load_segmenter
from mcbeit.segmentation.setup import SegmentationConfig
from mcbeit.segmentation.training import read_kept_areas, segment, trained_segmenter
from mcbeit.worker import Worker

BEST = f"{PRIMARY}, best epoch"


class SegmentationTaskConfig(RecipeConfig):
    """The settings of `segmentation`: a recipe, and what is changed of it, by the keys of `mcbeit train`."""

    JOB = SegmentationConfig
    BY_SIZE = BySize("ade20k-upernet-base", "ade20k-upernet-large")
    SECTIONS = ("compute", "eval", "head", "model", "optim", "preprocess", "scenes")

    compute: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)
    head: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    preprocess: dict[str, Any] = Field(default_factory=dict)
    scenes: dict[str, Any] = Field(default_factory=dict)


def run(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> Outcome:
    """Train on `train`, measure on `val`; a model that is a segmenter already is only measured."""
    if holds_segmenter(model.source):
        return _measure(model, data, config)
    job, scenes, before = make_job(model, data, config), data.scenes(), time.monotonic()
    scale = model.cache.scale
    if scale is None or data.limit is not None:
        summary = segment(job, resume=True, worker=Worker(stop=model.cache.stop), scenes=scenes)
    else:
        from mcbeit.distributed import launch

        summary = launch(job, resume=True, scale=scale)
    seconds, folder = time.monotonic() - before, Path(job.run)
    segmenter, device = trained_segmenter(folder, job, scenes.train.num_classes), choose_device()
    precision = choose_precision(job.compute.precision, device)
    best, judged = scene_metrics(read_kept_areas(folder, "best"), seed=config.seed), summary["judged"]
    return scene_outcome(
        scenes,
        read_kept_areas(folder, "last"),
        lambda pixels: find_classes(segmenter, pixels, job.scenes, job.preprocess, job.windows, precision),
        seed=config.seed,
        train=Used(num_used=len(scenes.train), num_unreadable=summary["corrupt"]),
        seconds={"train and judge": seconds},
        remarks=(_recipe(job), f"the best epoch is {judged['best']['epoch']:.3g}", f"run: {folder}"),
        curves=(_curve(folder),),
        others={BEST: best[PRIMARY].model_copy(update={"selection": judged["best"]["selection"]})},
    )


def _measure(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> Outcome:
    """Measure a trained segmenter as the recipe looks at test images, its own windows apart."""
    job, scenes, before = make_job(model, data, config), data.scenes(), time.monotonic()
    loaded, device = load_segmenter(model.source), choose_device()
    if loaded.model.num_classes != scenes.val.num_classes:
        raise BenchError(
            f"'{model.source}' is a segmenter of {loaded.model.num_classes} classes, but {data.name} has "
            f"{scenes.val.num_classes}; measure it on the images whose classes it learned"
        )
    preprocess = job.preprocess.model_copy(update={"image_size": loaded.image_size})
    job = job.model_copy(update={"preprocess": preprocess})
    segmenter, precision = loaded.model.to(device), choose_precision(job.compute.precision, device)
    epoch = judge(
        segmenter,
        scenes.val,
        job.scenes,
        preprocess,
        job.windows,
        precision,
        number=0.0,
        group=ALONE,
        num_workers=auto_workers(model.config.data),
    )
    return scene_outcome(
        scenes,
        epoch.areas,
        lambda pixels: find_classes(segmenter, pixels, job.scenes, preprocess, job.windows, precision),
        seed=config.seed,
        train=Used(num_used=0, num_unreadable=0),
        seconds={"judge": time.monotonic() - before},
        remarks=(f"a trained segmenter, only measured: {loaded.account.summary()}", _looks(job)),
    )


def make_job(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> SegmentationConfig:
    """The job, on images with the colours as the model sees them, at the recipe's size."""
    seen = model.encoder.spec.preprocess
    return job_of(TASK, model, data, config, preprocess={"mean": seen.mean, "std": seen.std})


def _curve(run: Path) -> Curve:
    found = [record for record in read_records(run) if "mean_iou" in record]
    return Curve(
        title="mean IoU on the test images by epoch",
        x_label="epoch",
        x=tuple(record["epoch"] for record in found),
        lines={"": tuple(record["mean_iou"] for record in found)},
    )


def _recipe(job: SegmentationConfig) -> str:
    """The recipe in a line; the run folder holds all of it."""
    optim = job.optim
    length = f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs:g} epochs"
    return (
        f"UperNet, {length}, batch {optim.batch_size}, lr {optim.lr:g}, layer decay {optim.layer_decay:g} "
        f"({optim.layer_rule}), weight decay {optim.weight_decay:g}, drop path {job.model.drop_path:g}; {_looks(job)}"
    )


def _looks(job: SegmentationConfig) -> str:
    """How test images are looked at, in a few words."""
    looks = job.windows
    scales = "single scale" if len(looks.scales) == 1 else f"{len(looks.scales)} scales"
    flipped = ", flipped too" if looks.flip else ""
    return f"windows of {job.preprocess.image_size}, stride {looks.stride}, {scales}{flipped}"


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {"optim": {"steps": 4, "batch_size": 4, "warmup_steps": 1}},
    "short": {"optim": {"steps": 4000, "warmup_steps": 150}},
    "paper": {},
}
TASK = BenchTask(
    "segmentation",
    1,
    "semantic segmentation by UperNet, all weights learn",
    "weights",
    "scenes",
    SegmentationTaskConfig,
    PRESETS,
    run,
)
