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
from mcbeit.bench.tasks.recipe import BySize, RecipeConfig, curve_of, job_of, run_job_of
from mcbeit.bench.tasks.scene_scores import PRIMARY, scene_metrics, scene_outcome
from mcbeit.bench.tasks.task import BenchTask, Outcome
from mcbeit.config import load, validate
from mcbeit.data import auto_workers
from mcbeit.device import choose_device, choose_precision
from mcbeit.epochs import LAST
from mcbeit.errors import BenchError
from mcbeit.group import ALONE
from mcbeit.segmentation.judging import Windows, find_classes, judge
from mcbeit.segmentation.loading import holds_segmenter, load_segmenter
from mcbeit.segmentation.scene_crops import SceneConfig
from mcbeit.segmentation.setup import SceneEvalConfig, SegmentationConfig, make_segmenter
from mcbeit.segmentation.training import read_kept_areas, segment
from mcbeit.supervised import as_trained

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

    def values(self, recipe: str) -> dict[str, Any]:
        """See `RecipeConfig`. The blocks that are used depend on how many there are, unless they are named."""
        found = super().values(recipe)
        if "taps" not in self.head:
            found["head"].pop("taps", None)
        return found


def run(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> Outcome:
    """Train on `train`, measure on `val`; a model that is a segmenter already is only measured."""
    if holds_segmenter(model.source):
        return _measure(model, data, config)
    job, scenes, before = make_job(model, data, config), data.scenes(), time.monotonic()
    summary = run_job_of(job, model, data, segment, scenes=scenes)
    seconds, folder = time.monotonic() - before, Path(job.run)
    segmenter, device = as_trained(make_segmenter(job, scenes.train.num_classes), folder), choose_device()
    precision = choose_precision(job.compute.precision, device)
    best, judged = scene_metrics(read_kept_areas(folder, "best"), seed=config.seed), summary["judged"]
    return scene_outcome(
        scenes,
        read_kept_areas(folder, "last"),
        lambda pixels: find_classes(segmenter, pixels, job.scenes, job.preprocess, job.windows, precision),
        seed=config.seed,
        selection=LAST,
        train=Used.in_training(len(scenes.train), summary["corrupt"]),
        seconds={"train and judge": seconds},
        remarks=(_recipe(job), f"the best epoch is {judged['best']['epoch']:.3g}", f"run: {folder}"),
        curves=(curve_of(folder, "mean IoU on the test images by epoch", {"": "mean_iou"}),),
        others={BEST: best[PRIMARY].model_copy(update={"selection": judged["best"]["selection"]})},
    )


def _measure(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> Outcome:
    """Measure a trained segmenter, on images of the size and by the windows of its own run, unless they are set.

    A file tells its windows alone: the short side of images is as long as a window.
    """
    images, before = data.scenes(), time.monotonic()
    loaded, device = load_segmenter(model.source), choose_device()
    if loaded.model.num_classes != images.val.num_classes:
        raise BenchError(
            f"'{model.source}' is a segmenter of {loaded.model.num_classes} classes, but {data.name} has "
            f"{images.val.num_classes}; measure it on the images whose classes it learned"
        )
    size = loaded.image_size
    own = (
        SegmentationConfig(scenes=SceneConfig(short_side=size, long_side=4 * size))
        if loaded.run is None
        else load(SegmentationConfig, loaded.run / "config.yaml")
    )
    scenes = validate(SceneConfig, {**own.scenes.model_dump(), **config.scenes}, origin="segmentation.scenes")
    looked = validate(SceneEvalConfig, {**own.eval.model_dump(), **config.eval}, origin="segmentation.eval")
    preprocess = (loaded.preprocess or model.encoder.spec.preprocess).model_copy(update={"image_size": size})
    segmenter, windows = loaded.model.to(device), looked.windows(size)
    precision = choose_precision(config.compute.get("precision", own.compute.precision), device)
    epoch = judge(
        segmenter,
        images.val,
        scenes,
        preprocess,
        windows,
        precision,
        number=0.0,
        group=ALONE,
        num_workers=auto_workers(model.config.data),
    )
    return scene_outcome(
        images,
        epoch.areas,
        lambda pixels: find_classes(segmenter, pixels, scenes, preprocess, windows, precision),
        seed=config.seed,
        selection="none",
        train=Used(num_used=0, num_unreadable=0),
        seconds={"judge": time.monotonic() - before},
        remarks=(
            f"a trained segmenter, only measured: {loaded.account.summary()}",
            _looks(scenes, windows, size),
        ),
    )


def make_job(model: BenchModel, data: BenchData, config: SegmentationTaskConfig) -> SegmentationConfig:
    """The job, on images with the colours as the model sees them, at the recipe's size."""
    seen = model.encoder.spec.preprocess
    return job_of(TASK, model, data, config, preprocess={"mean": seen.mean, "std": seen.std})


def _recipe(job: SegmentationConfig) -> str:
    """The recipe in a line; the run folder holds all of it."""
    optim = job.optim
    length = f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs:g} epochs"
    return (
        f"UperNet, {length}, batch {optim.batch_size}, lr {optim.lr:g}, layer decay {optim.layer_decay:g} "
        f"({optim.layer_rule}), weight decay {optim.weight_decay:g}, drop path {job.model.drop_path:g}; "
        f"{_looks(job.scenes, job.windows, job.preprocess.image_size)}"
    )


def _looks(scenes: SceneConfig, windows: Windows, size: int) -> str:
    """How test images are looked at, in a few words."""
    scales = "single scale" if len(windows.scales) == 1 else f"{len(windows.scales)} scales"
    flipped = ", flipped too" if windows.flip else ""
    return (
        f"images of short side {scenes.short_side}, long side at most {scenes.long_side}; windows of {size}, stride "
        f"{windows.stride}, {scales}{flipped}"
    )


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
