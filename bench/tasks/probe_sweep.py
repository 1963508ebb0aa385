"""Which vector to use: k-NN and a linear probe over layers, poolings, the final norm, and scalings.

All vectors come from one pass over the images. They are judged on training images that are left out; only the best one
is then measured on the test images, so that its number is not flattered by the choice.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.logistic import fit_logistic
from mcbeit.bench.model import BenchModel
from mcbeit.bench.nearest import nearest
from mcbeit.bench.result import Answers, Curve, Metric, Selection, accuracy, by_class
from mcbeit.bench.scaling import Scaling, fit_scaling, scaled
from mcbeit.bench.sweep import Column, split_columns
from mcbeit.bench.tasks.logreg import cut
from mcbeit.bench.tasks.task import BenchTask, Outcome, TaskConfig
from mcbeit.bench.voting import vote
from mcbeit.config import UserPath, validate
from mcbeit.encoder import EncoderConfig, Pooling
from mcbeit.errors import BenchError
from mcbeit.export import ExportConfig, export_model
from mcbeit.torch_encoder import TorchEncoder
from mcbeit.whitening import Whitening

Probe = Literal["knn", "linear"]
PROBES: Sequence[Probe] = ("knn", "linear")
HELD_OUT: Selection = "held-out images"
Vectors = Float32[np.ndarray, "_ dim"]
Labels = Int64[np.ndarray, " _"]


class ProbeSweepConfig(TaskConfig):
    """The settings of `probe-sweep`."""

    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None  # None: all
    pooling: tuple[Pooling, ...] = Field(("mean", "cls", "gem"), min_length=1)  # of these, those that the model has
    final_norm: tuple[bool, ...] = Field((False, True), min_length=1)
    scaling: tuple[Scaling, ...] = Field(("none", "standardise", "whiten"), min_length=1)
    choose_by: Probe = "knn"  # what counts for "use this vector"
    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)
    strength: float = Field(1.0, gt=0)  # C of the linear probe
    max_iterations: int = Field(100, ge=1)  # of the linear probe
    held_out: float = Field(0.2, gt=0, lt=1)  # of the training images
    export: UserPath | None = None  # a folder that `mcbeit export` of the best vector is written to


class Choice(NamedTuple):
    """One vector."""

    column: Column
    scaling: Scaling

    def __str__(self) -> str:
        return f"{self.column}, scaling {self.scaling}"

    @property
    def assignments(self) -> str:
        """As `mcbeit export` and `mcbeit embed` take it."""
        return (
            f"layer={self.column.layer} pooling={self.column.pooling} final_norm={str(self.column.final_norm).lower()}"
        )


def run(model: BenchModel, data: BenchData, config: ProbeSweepConfig) -> Outcome:
    """Judge every vector on held-out training images, then the best one on `val`."""
    columns = columns_of(model, config)
    train, val = model.features(data, "train", columns), model.features(data, "val", columns)
    assert train.labels is not None
    assert val.labels is not None
    before, num_classes = time.monotonic(), len(train.classes)
    kept, left_out = cut(len(train.vectors), config.held_out, config.seed, key="probe-sweep.held_out")
    vectors = split_columns(train.vectors, len(columns))
    probes = _Probes(config, num_classes)
    judged: dict[Choice, dict[Probe, Bool[np.ndarray, " image"]]] = {}
    scalings = [one for one in dict.fromkeys(config.scaling) if one != "whiten" or len(kept) > vectors.shape[2]]
    for i, column in enumerate(columns):
        part = np.ascontiguousarray(vectors[:, i])
        for scaling in scalings:
            judged[Choice(column, scaling)] = probes.judge(
                part[kept], train.labels[kept], part[left_out], train.labels[left_out], scaling
            )
    best = max(judged, key=lambda choice: float(judged[choice][config.choose_by].mean()))
    at = columns.index(best.column)
    chosen = np.ascontiguousarray(vectors[:, at])
    asked = np.ascontiguousarray(split_columns(val.vectors, len(columns))[:, at])
    tested = probes.judge(chosen, train.labels, asked, val.labels, best.scaling)
    primary = f"{config.choose_by} top1, best vector"
    outcome = Outcome(
        primary=primary,
        metrics=dict(_metrics(judged, tested)),
        used={},
        per_class={primary: by_class(tested[config.choose_by], val.labels, num_classes)},
        curves=tuple(_curves(judged)),
        answers=Answers.of(primary, tested[config.choose_by]),
        remarks=(
            *(
                f"scaling {one} left out: it needs more images than the {vectors.shape[2]} numbers of a vector"
                for one in config.scaling
                if one not in scalings
            ),
            _advice(best, model.source, judged[best]),
            *([] if config.export is None else [_export(best, chosen, model, Path(config.export))]),
        ),
        seconds={"probes": time.monotonic() - before},
    )
    outcome.note_features(train=train, val=val)
    return outcome


def columns_of(model: BenchModel, config: ProbeSweepConfig) -> list[Column]:
    """The vectors that the model can give of those that were asked for. Raises BenchError if there is none."""
    body = model.body
    layers = config.layers or tuple(range(1, body.num_layers + 1))
    poolings = [one for one in dict.fromkeys(config.pooling) if one != "head" and (body.has_cls or "cls" not in one)]
    norms = dict.fromkeys(config.final_norm if body.norms_tokens else (False,))
    found = [Column(layer, pooling, norm) for layer in layers for pooling in poolings for norm in norms]
    if not found:
        raise BenchError(
            f"'{model.source}' has none of the vectors that probe-sweep.pooling={list(config.pooling)} names"
        )
    return found


class _Probes:
    """Both probes, with what they need to know."""

    def __init__(self, config: ProbeSweepConfig, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes

    def judge(
        self, vectors: Vectors, labels: Labels, asked: Vectors, truth: Labels, scaling: Scaling
    ) -> dict[Probe, Bool[np.ndarray, " image"]]:
        """Which of the images asked about each probe gets right."""
        config = self.config
        plain = scaled(vectors, asked, scaling, unit=False)
        gallery, queries = scaled(vectors, asked, scaling, unit=True)
        k = min(config.k, len(gallery))
        found = nearest(queries, gallery, k)
        votes = vote(found.scores, labels[found.indices], truth, (k,), (config.temperature,), self.num_classes)
        standard = scaled(plain[0], plain[1], "standardise", unit=False)  # or strengths mean something else each time
        fitted = fit_logistic(
            standard[0],
            labels,
            self.num_classes,
            [config.strength],
            max_iterations=config.max_iterations,
            dtype="float32",
        )
        return {"knn": votes.top1[0, 0], "linear": fitted.predict(standard[1])[0] == truth}


def _metrics(
    judged: dict[Choice, dict[Probe, np.ndarray]], tested: dict[Probe, np.ndarray]
) -> Iterator[tuple[str, Metric]]:
    for probe, correct in tested.items():
        yield f"{probe} top1, best vector", accuracy(correct, HELD_OUT)
    for choice, found in judged.items():
        for probe, correct in found.items():
            yield f"{probe} on held-out images: {choice}", accuracy(correct)


def _curves(judged: dict[Choice, dict[Probe, np.ndarray]]) -> Iterator[Curve]:
    """By layer: a chart per probe and scaling, a line per pooling and norm."""
    layers = sorted({choice.column.layer for choice in judged})
    for probe, scaling in product(PROBES, dict.fromkeys(choice.scaling for choice in judged)):
        lines: dict[str, dict[int, float]] = {}
        for choice, found in judged.items():
            if choice.scaling == scaling:
                name = choice.column.pooling + (", final norm" if choice.column.final_norm else "")
                lines.setdefault(name, {})[choice.column.layer] = float(found[probe].mean())
        yield Curve(
            title=f"{probe}, scaling {scaling}",
            x_label="layer",
            x=tuple(map(float, layers)),
            lines={name: tuple(line[layer] for layer in layers) for name, line in lines.items()},
        )


def _advice(best: Choice, source: str, found: dict[Probe, np.ndarray]) -> str:
    evidence = ", ".join(f"{probe} {100 * correct.mean():.2f} %" for probe, correct in found.items())
    advice = f"use this vector: {best} ({evidence} on {len(found['knn']):,} held-out images)"
    export = f"mcbeit export {source} -o DIR {best.assignments}"
    return (
        f"{advice}; {export}"
        if best.scaling == "none"
        else f"{advice}; probe-sweep.export=DIR writes it, scaling included"
    )


def _export(best: Choice, vectors: Vectors, model: BenchModel, out: Path) -> str:
    """Write the choice as an exported model; its scaling becomes a whitening in the graph."""
    column, given = best.column, model.config
    values: dict[str, Any] = {"layer": column.layer, "pooling": column.pooling, "final_norm": column.final_norm}
    values |= {
        name: getattr(given, name)
        for name in ("image_size", "weights", "seed", "num_heads")
        if name in given.model_fields_set
    }
    with tempfile.TemporaryDirectory() as folder:
        if best.scaling != "none":
            fitted = fit_scaling(vectors, best.scaling)
            spec = TorchEncoder.load(model.source, EncoderConfig.model_validate(values)).spec
            path = Path(folder, "whitening.safetensors")
            Whitening(fitted.mean, np.ascontiguousarray(fitted.square()), spec.fingerprint).save(path)
            values["whitening"] = str(path)
        config = validate(ExportConfig, {**values, "image_size": values.get("image_size")}, origin="probe-sweep.export")
        exported = export_model(model.source, out, config)
    return f"{exported.folder}: the best vector, exported"


PRESETS: dict[Any, dict[str, Any]] = {"smoke": {"scaling": ["none"], "max_iterations": 30}, "short": {}, "paper": {}}
TASK = BenchTask(
    "probe-sweep", 1, "which layer, pooling, norm and scaling to use", "weights", "labelled", ProbeSweepConfig,
    PRESETS, run,
)  # fmt: skip
