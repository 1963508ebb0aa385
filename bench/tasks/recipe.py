"""Tasks that train all weights: a recipe of `mcbeit train`, what is changed of it, and the run that it becomes."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import model_validator

from mcbeit.bench.data import BenchData
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Curve
from mcbeit.bench.tasks.task import BenchTask, TaskConfig
from mcbeit.config import read_values, validate
from mcbeit.runfolder import read_records
from mcbeit.start import StartConfig, with_weights
from mcbeit.worker import Worker

AUTO = "auto"
LARGE_DIM = 1024  # of the patch tokens, from which on the recipe is that of ViT-L
IDLE: Any = {  # what of a job changes no number
    **dict.fromkeys(("run", "log", "checkpoint"), True),
    "data": {"num_workers", "max_corrupt_fraction"},
    "compute": {"threads", "compile", "gradient_checkpointing", "shard"},
}


class BySize(NamedTuple):
    """The presets of `recipe=auto`."""

    base: str
    large: str


class RecipeConfig(TaskConfig):
    """A recipe, and what is changed of it; a subclass has a key for each of its `SECTIONS`."""

    JOB: ClassVar[type[StartConfig]]
    BY_SIZE: ClassVar[BySize]
    SECTIONS: ClassVar[tuple[str, ...]]

    recipe: str = AUTO  # a preset or a file; auto: that of the model's size

    @model_validator(mode="after")
    def _is_a_recipe(self) -> "RecipeConfig":
        validate(self.JOB, self.values(self.BY_SIZE.base), origin=f"the recipe {self.recipe}")
        return self

    def described(self) -> dict[str, Any]:
        """See `TaskConfig`. A recipe that is named is told in full, as its file may change."""
        plain = super().described()
        return plain if self.recipe == AUTO else {**plain, "resolved": self.values(self.recipe)}

    def values(self, recipe: str) -> dict[str, Any]:
        """The keys of the job; the shape of the model is left to the weights."""
        found = read_values(recipe if self.recipe == AUTO else self.recipe)
        for section in self.SECTIONS:
            found[section] = {**found.get(section, {}), **getattr(self, section)}
        for shape in ("size", "layer_scale"):
            if shape not in getattr(self, "model", {}):
                found["model"].pop(shape, None)
        return {**found, "seed": self.seed}


def job_of(
    task: BenchTask, model: BenchModel, data: BenchData, config: RecipeConfig, *, preprocess: dict[str, Any]
) -> Any:
    """The job, in a folder whose name changes with anything that its numbers depend on."""
    spec = model.encoder.spec
    values = config.values(config.BY_SIZE.large if spec.patch_dim >= LARGE_DIM else config.BY_SIZE.base)
    values["init"], values["preprocess"] = model.source, {**values.get("preprocess", {}), **preprocess}
    values["data"] = {**model.config.data.model_dump(), "source": data.path}
    if model.config.num_heads is not None:
        values["model"].setdefault("num_heads", model.config.num_heads)
    if model.config.threads is not None:
        values["compute"].setdefault("threads", model.config.threads)
    values["run"] = "unnamed"
    job = with_weights(validate(config.JOB, values, origin=f"the task {task.name}"))
    manifests = [model.cache.manifest(data, split).model_dump(mode="json") for split in task.splits]
    told = [task.version, job.model_dump(mode="json", exclude=IDLE)]
    digest = hashlib.sha256(json.dumps([told, spec.fingerprint, manifests]).encode()).hexdigest()[:16]
    return job.model_copy(update={"run": str(model.out / "runs" / f"{task.name}-{digest}")})


def run_job_of(job: Any, model: BenchModel, data: BenchData, run: Callable[..., dict[str, Any]], **images: Any) -> Any:
    """Run a job here, on the images that a limit has left, or whole over Ray; its summary."""
    if model.cache.scale is None or data.limit is not None:
        return run(job, resume=True, worker=Worker(stop=model.cache.stop), **images)
    from mcbeit.distributed import launch

    return launch(job, resume=True, scale=model.cache.scale)


def curve_of(run: Path, title: str, lines: Mapping[str, str]) -> Curve:
    """Metrics of a run by epoch, by the names that its log has them under."""
    found = [record for record in read_records(run) if set(lines.values()) <= record.keys()]
    return Curve(
        title=title,
        x_label="epoch",
        x=tuple(record["epoch"] for record in found),
        lines={name: tuple(record[key] for record in found) for name, key in lines.items()},
    )
