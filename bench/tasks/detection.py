"""Detection with all weights learning: Mask R-CNN, by the recipe and the code of `mcbeit train coco-maskrcnn-base`.

The run lies in OUT/runs and goes on where it stopped; what was found lies there as results.json, which other tools
read. The AP to quote is that of the last epoch. A model that is a detector already is only measured.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.manifest import MAX_LISTED, Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Metric, Selection, bootstrapped
from mcbeit.bench.tasks.object_pictures import NUM_PICTURES, object_picture
from mcbeit.bench.tasks.recipe import AUTO, BySize, RecipeConfig, curve_of, job_of, run_job_of
from mcbeit.bench.tasks.task import BenchTask, Outcome
from mcbeit.config import validate
from mcbeit.data import auto_workers
from mcbeit.detection.coco import CocoSource
from mcbeit.detection.coco_scores import bootstrap_ap
from mcbeit.detection.dataset import load_whole
from mcbeit.detection.judging import NAMES, check_scorable, judge
from mcbeit.detection.loading import LoadedDetector
from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.setup import DetectionConfig, DetectionEvalConfig, make_detector
from mcbeit.detection.training import FILES, detect, keep_results
from mcbeit.device import ComputeConfig, choose_device, choose_precision
from mcbeit.epochs import LAST
from mcbeit.errors import BenchError, ImageError
from mcbeit.group import ALONE
from mcbeit.probe import pick
from mcbeit.supervised import as_trained

PRIMARY, MASK, BEST = "box_ap", "mask_ap", "box_ap, best epoch"
KINDS = {"box": PRIMARY, "mask": MASK}


class DetectionTaskConfig(RecipeConfig):
    """The settings of `detection`: a recipe, and what is changed of it, by the keys of `mcbeit train`."""

    JOB = DetectionConfig
    BY_SIZE = BySize("coco-maskrcnn-base", "coco-maskrcnn-base")
    SECTIONS = ("compute", "detector", "eval", "jitter", "model", "optim", "preprocess")

    window: int | None = Field(None, ge=1)  # patches per side; default: the recipe's
    compute: dict[str, Any] = Field(default_factory=dict)
    detector: dict[str, Any] = Field(default_factory=dict)
    eval: dict[str, Any] = Field(default_factory=dict)
    jitter: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    optim: dict[str, Any] = Field(default_factory=dict)
    preprocess: dict[str, Any] = Field(default_factory=dict)

    def values(self, recipe: str) -> dict[str, Any]:
        """See `RecipeConfig`. Unless a recipe is named, bias tables are as the weights have them, as is published."""
        found = {**super().values(recipe), **({} if self.window is None else {"window": self.window})}
        if self.recipe == AUTO and "bias_tables" not in self.model:
            found["model"].pop("bias_tables", None)
        return found


def run(model: BenchModel, data: BenchData, config: DetectionTaskConfig) -> Outcome:
    """Train on `train`, measure on `val`; a model that is a detector already is only measured."""
    if model.detector is not None:
        return _measure(model, model.detector, data, config)
    job, splits, before = make_job(model, data, config), data.annotated(), time.monotonic()
    summary = run_job_of(job, model, data, detect, splits=splits)
    seconds, folder = time.monotonic() - before, Path(job.run)
    told = {which: json.loads((folder / scores).read_text()) for which, (_, scores) in FILES.items()}
    judged = summary["judged"]
    outcome = _outcome(splits.val, told["last"], folder / FILES["last"][0], selection=LAST, seed=config.seed)
    outcome.metrics[BEST] = _metrics(told["best"], len(splits.val), judged["best"]["selection"])[PRIMARY]
    outcome.used["train"] = Used.in_training(len(splits.train), summary["corrupt"])
    outcome.curves = (curve_of(folder, "AP on the test images by epoch", KINDS),)
    outcome.remarks = (
        _recipe(job),
        f"the best epoch is {judged['best']['epoch']:.3g}",
        f"run: {folder}, with {FILES['last'][0]}; scored by {job.eval.backend}",
    )
    outcome.seconds = {"train and judge": seconds}
    detector = as_trained(make_detector(job, len(splits.val.classes)), folder)
    outcome.pictures = _pictures(splits.val, detector, job.compute, config.seed)
    return outcome


def _measure(model: BenchModel, loaded: LoadedDetector, data: BenchData, config: DetectionTaskConfig) -> Outcome:
    """Look for objects as the detector itself does; of the recipe only what it is computed and scored by counts."""
    values, splits, before = config.values(config.BY_SIZE.base), data.annotated(), time.monotonic()
    looks = validate(DetectionEvalConfig, values.get("eval", {}), origin=f"the task {TASK.name}")
    compute = validate(ComputeConfig, values.get("compute", {}), origin=f"the task {TASK.name}")
    if loaded.shape.num_classes != len(splits.val.classes):
        raise BenchError(
            f"'{model.source}' is a detector of {loaded.shape.num_classes} classes, but {data.name} has "
            f"{len(splits.val.classes)}; measure it on the images whose classes it learned"
        )
    check_scorable(splits.val, looks.backend)
    device = choose_device()
    detector = loaded.model.to(device)
    epoch = judge(
        detector,
        splits.val,
        choose_precision(compute.precision, device),
        number=0.0,
        group=ALONE,
        num_workers=auto_workers(model.config.data),
        batch_size=looks.batch_size,
        backend=looks.backend,
    )
    folder = model.out / "detections" / f"{data.name}-{model.facts().spec.fingerprint[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    keep_results(folder, epoch, is_best=False)
    results = folder / FILES["last"][0]
    outcome = _outcome(splits.val, epoch.as_json(), results, selection="none", seed=config.seed)
    outcome.used["train"] = Used(num_used=0, num_unreadable=0)
    outcome.remarks = (
        f"a trained detector, only measured: {loaded.account.summary()}",
        f"squares of {loaded.image_size} px; {results}; scored by {looks.backend}",
    )
    outcome.seconds = {"judge": time.monotonic() - before}
    outcome.pictures = _pictures(splits.val, detector, compute, config.seed)
    return outcome


def _outcome(source: CocoSource, told: dict[str, Any], results: Path, *, selection: Selection, seed: int) -> Outcome:
    """Of the scores of an epoch and the file of what was found, as they are kept."""
    unreadable = tuple(source.name(image) for image in told["unreadable"])
    used = Used(
        num_used=len(source) - len(unreadable), num_unreadable=len(unreadable), unreadable=unreadable[:MAX_LISTED]
    )
    metrics = _metrics(told, len(source), selection)
    found, image_ids = json.loads(results.read_text()), source.image_ids.tolist()
    draws = bootstrap_ap(source.file.path, found, image_ids=image_ids, seed=seed)
    for kind, name in NAMES.items():
        known = draws[kind][np.isfinite(draws[kind])]
        metrics[KINDS[name]] = bootstrapped(metrics[KINDS[name]].value, known, "images", len(source), selection)
    return Outcome(
        primary=PRIMARY,
        metrics=metrics,
        used={"val": used},
        per_class={KINDS[kind]: tuple(told[kind]["by_class"][name] for name in source.classes) for kind in KINDS},
    )


def make_job(model: BenchModel, data: BenchData, config: DetectionTaskConfig) -> DetectionConfig:
    """The job, on images with the colours as the model sees them, at the recipe's size."""
    seen = model.encoder.spec.preprocess
    return job_of(TASK, model, data, config, preprocess={"mean": seen.mean, "std": seen.std})


def _metrics(told: dict[str, Any], num_images: int, selection: Selection) -> dict[str, Metric]:
    """COCO's twelve numbers of boxes and of masks, those that there are; AP first."""
    found: dict[str, Metric] = {}
    for kind, name in KINDS.items():
        for stat, value in told[kind]["stats"].items():
            if value is not None:
                metric = Metric(value=value, num_samples=num_images, selection=selection)
                found[name if stat == "AP" else f"{kind} {stat}"] = metric
    return dict(sorted(found.items(), key=lambda item: item[0] not in (PRIMARY, MASK)))


@torch.no_grad()
def _pictures(source: CocoSource, model: MaskRCNN, compute: ComputeConfig, seed: int) -> list[dict[str, Any]]:
    """Some test images with what is marked in them and what was found."""
    device, found = choose_device(), []
    precision = choose_precision(compute.precision, device)
    for index in pick(source, NUM_PICTURES, seed).tolist():
        try:
            square = load_whole(source, index, model.image_size)
        except (ImageError, OSError):
            continue
        with precision.autocast(device):
            (objects,) = model.detect(square[None].to(device))
        height, width = source.size_of(index)
        inside = objects.in_image(height, width, model.image_size).to(torch.device("cpu"))
        found.append(object_picture(source, index, inside))
    return found


def _recipe(job: DetectionConfig) -> str:
    """The recipe in a line; the run folder holds all of it."""
    optim = job.optim
    length = f"{optim.steps:,} steps" if optim.steps else f"{optim.epochs:g} epochs"
    return (
        f"Mask R-CNN, {job.detector.pyramid} pyramid, windows of {job.window} patches, {job.model.bias_tables} bias "
        f"tables, {job.preprocess.image_size} px, {length}, batch {optim.batch_size}, lr {optim.lr:g}, layer decay "
        f"{optim.layer_decay:g}, weight decay {optim.weight_decay:g}, drop path {job.model.drop_path:g}, jitter "
        f"{job.jitter.scale[0]:g} to {job.jitter.scale[1]:g}"
    )


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {"optim": {"steps": 4, "batch_size": 2}},
    "short": {"optim": {"steps": 4000, "batch_size": 16}},
    "paper": {},
}
TASK = BenchTask(
    "detection",
    1,
    "objects with boxes and masks by Mask R-CNN, all weights learn",
    "weights",
    "annotated",
    DetectionTaskConfig,
    PRESETS,
    run,
)
