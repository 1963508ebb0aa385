"""k-NN: the weighted vote of the nearest images, as DINO measures frozen features.

Unit vectors, cosine, weights exp(similarity / temperature) (Wu et al., 2018; Caron et al., 2021). All k and all
temperatures come from one search, which is exact.
"""

import time
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from mcbeit.bench.data import BenchData
from mcbeit.bench.model import BenchModel
from mcbeit.bench.nearest import nearest
from mcbeit.bench.pictures import neighbour_pictures
from mcbeit.bench.result import Answers, Curve, Metric, accuracy, by_class, confusion_counts
from mcbeit.bench.scaling import Scaling, scaled
from mcbeit.bench.tasks.task import MAX_CONFUSED, BenchTask, Outcome, TaskConfig
from mcbeit.bench.voting import vote
from mcbeit.errors import BenchError

USUAL_K = 20


class KnnConfig(TaskConfig):
    """The settings of `knn`."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 100, 200), min_length=1)
    temperature: tuple[PositiveFloat, ...] = Field((0.07,), min_length=1)
    scaling: Scaling = "none"  # before vectors are made unit
    first_pass: Literal["auto", "fp32", "bf16", "int8"] = "auto"  # products of the search; the result is exact with any


def run(model: BenchModel, data: BenchData, config: KnnConfig) -> Outcome:
    """Classify the images of `val` by their neighbours in `train`."""
    train, val = model.features(data, "train"), model.features(data, "val")
    assert train.labels is not None
    assert val.labels is not None
    ks = tuple(sorted(k for k in set(config.k) if k <= len(train.vectors)))
    if not ks:
        raise BenchError(f"knn.k={list(config.k)}, but {data.name} has only {len(train.vectors)} images to search")
    before = time.monotonic()
    gallery, queries = scaled(train.vectors, val.vectors, config.scaling, unit=True)
    found = nearest(queries, gallery, ks[-1], first_pass=config.first_pass)
    num_classes = len(train.classes)
    votes = vote(found.scores, train.labels[found.indices], val.labels, ks, config.temperature, num_classes)
    seconds = time.monotonic() - before
    metrics: dict[str, Metric] = {}
    for i, k in enumerate(ks):
        for j, temperature in enumerate(config.temperature):
            for name, correct in (("top1", votes.top1[i, j]), ("top5", votes.top5[i, j])):
                if name == "top1" or num_classes > 5:
                    metrics[_name(name, k, temperature)] = accuracy(correct)
    which = ks.index(USUAL_K) if USUAL_K in ks else 0
    primary, correct = _name("top1", ks[which], config.temperature[0]), votes.top1[which, 0]
    best = max((name for name in metrics if name.startswith("top1")), key=lambda name: metrics[name].value)
    metrics["top1, best setting"] = metrics[best].model_copy(update={"selection": "best on the test images"})
    outcome = Outcome(
        primary=primary,
        metrics=metrics,
        used={},
        per_class={primary: by_class(correct, val.labels, num_classes)},
        curves=(_curve(ks, [metrics[_name("top1", k, config.temperature[0])] for k in ks]),) if len(ks) > 1 else (),
        answers=Answers.of(primary, correct),
        remarks=_remarks(config, ks),
        seconds={"search": seconds},
        pictures=neighbour_pictures(data.open("val"), data.open("train"), val, train, found.indices, config.seed),
    )
    if num_classes <= MAX_CONFUSED:
        outcome.confusion = confusion_counts(val.labels, votes.predicted[which, 0], num_classes)
    outcome.note_features(train=train, val=val)
    return outcome


def _name(metric: str, k: int, temperature: float) -> str:
    return f"{metric}, k={k}, T={temperature:g}"


def _curve(ks: tuple[int, ...], found: list[Metric]) -> Curve:
    return Curve(
        title="top-1 by the number of neighbours",
        x_label="k",
        x=tuple(map(float, ks)),
        lines={"": tuple(one.value for one in found)},
    )


def _remarks(config: KnnConfig, ks: tuple[int, ...]) -> tuple[str, ...]:
    left_out = sorted(set(config.k) - set(ks))
    return (f"k={left_out} left out: more than there are images to search",) if left_out else ()


PRESETS: dict[Any, dict[str, Any]] = {"smoke": {"k": [5, 20]}, "short": {}, "paper": {}}
TASK = BenchTask("knn", 1, "weighted k-NN on frozen embeddings", "embedding", "labelled", KnnConfig, PRESETS, run)
