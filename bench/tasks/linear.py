"""Linear probes by gradient descent, as BEiT, MAE and DINOv2 train them, on random crops or on vectors that are kept.

All heads of a recipe are trained together on the same batches. Which of them counts is decided on training images that
are left out, or, as the official codes of BEiT and DINOv2 do, by the best of all heads and epochs on the test images.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from pydantic import Field, PositiveFloat
from torch import Tensor

from mcbeit.augment import CropConfig, View
from mcbeit.bench.data import BenchData
from mcbeit.bench.features import Features
from mcbeit.bench.head_history import History, train_and_ask
from mcbeit.bench.head_training import HeadTraining
from mcbeit.bench.linear_heads import Batch, HeadAnswers, LinearHeads, evaluate_heads
from mcbeit.bench.linear_recipes import RECIPES, LinearRecipe, RecipeName, columns_of, head_specs
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Answers, Curve, Selection, accuracy, by_class, confusion_counts
from mcbeit.bench.sweep import Column, SweepEncoder
from mcbeit.bench.tasks.logreg import cut
from mcbeit.bench.tasks.task import MAX_CONFUSED, BenchTask, Outcome, TaskConfig
from mcbeit.data import ViewDataset, auto_workers, batch_keys, check_readable, make_loader
from mcbeit.device import choose_device
from mcbeit.sources import ImageSource, SubsetSource

EVALUATED_AT_ONCE = 1024
STD = 0.01  # of weights at the start


class LinearConfig(TaskConfig):
    """The settings of `linear`; those that are left open are the recipe's."""

    recipe: RecipeName = "beit"
    augment: bool = True  # random crops and flips in every epoch; else the vectors that other tasks use too
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    lr: tuple[PositiveFloat, ...] | None = None  # for 256 images
    warmup_epochs: float | None = Field(None, ge=0)
    selection: Literal["held-out", "test"] = "held-out"  # of the head; test: of head and epoch, on the test images
    held_out: float = Field(0.1, gt=0, lt=1)  # of the training images, if there is more than one head

    @property
    def needs_weights(self) -> str | None:
        """Random crops have to go through the network here."""
        return "linear.augment=false" if self.augment else None

    def resolved(self) -> LinearRecipe:
        """The recipe with what is set here."""
        found = RECIPES[self.recipe]
        epochs = self.epochs or found.training.epochs
        warmup = found.training.warmup_epochs * epochs / found.training.epochs
        training = replace(
            found.training, epochs=epochs, warmup_epochs=warmup if self.warmup_epochs is None else self.warmup_epochs
        )
        return found._replace(
            training=training, batch_size=self.batch_size or found.batch_size, lrs=self.lr or found.lrs
        )


class _Plan(NamedTuple):
    """What is trained on what."""

    recipe: LinearRecipe
    columns: list[Column]
    kept: Int64[np.ndarray, " image"]  # rows of `train` that are trained on
    left_out: Int64[np.ndarray, " image"]  # and those that choose, if there is anything to choose
    batch_size: int
    steps_per_epoch: int


def run(model: BenchModel, data: BenchData, config: LinearConfig) -> Outcome:
    """Train on `train`, measure on `val`."""
    columns = columns_of(config.recipe, model.body) if model.kind == "torch" else []
    train, val = model.features(data, "train", columns), model.features(data, "val", columns)
    assert val.labels is not None
    recipe, num_classes = config.resolved(), len(train.classes)
    has_choice = len(head_specs(config.recipe, columns, recipe.lrs)) > 1
    plan = _plan(config, recipe, columns, len(train.vectors), has_choice=has_choice)
    specs = head_specs(config.recipe, columns, recipe.peak_lrs(plan.batch_size))
    dim = train.vectors.shape[1] // max(1, len(columns))
    heads = LinearHeads(specs, dim, num_classes, init_std=STD, batch_norm=recipe.batch_norm, seed=config.seed)
    heads.to(choose_device())
    training = HeadTraining(heads, recipe.training, steps_per_epoch=plan.steps_per_epoch)
    before = time.monotonic()
    make = _augmented(model, data, train, plan, config) if config.augment else _kept(train, plan, config.seed)
    history = train_and_ask(
        training,
        make,
        lambda: _ask(heads, val, np.arange(len(val.vectors))),
        _state(model, data, config),
        model.cache.stop,
    )
    chosen, answers, selection = _choose(heads, train, plan, history, config)
    correct, guess = answers.top1[chosen], answers.predicted[chosen]
    metrics = {"top1": accuracy(correct, selection)}
    metrics |= {"top5": accuracy(answers.top5[chosen], selection)} if num_classes > 5 else {}
    if has_choice and history.last is not None:
        last = history.last.top1
        metrics |= {f"top1, {spec.name}, last epoch": accuracy(last[i]) for i, spec in enumerate(specs)}
    outcome = Outcome(
        primary="top1",
        metrics=metrics,
        used={},
        per_class={"top1": by_class(correct, val.labels, num_classes)},
        confusion=confusion_counts(val.labels, guess, num_classes) if num_classes <= MAX_CONFUSED else None,
        curves=(_curve(history, chosen, specs[chosen].name),),
        answers=Answers.of("top1", correct),
        remarks=_remarks(config, plan, specs[chosen].name, model),
        seconds={"train": time.monotonic() - before},
    )
    outcome.note_features(train=train, val=val)
    return outcome


def _plan(config: LinearConfig, recipe: LinearRecipe, columns: list[Column], count: int, *, has_choice: bool) -> _Plan:
    kept, left_out = np.arange(count), np.zeros(0, np.int64)
    if has_choice and config.selection == "held-out":
        kept, left_out = cut(count, config.held_out, config.seed, key="linear.held_out")
    size = min(recipe.batch_size, len(kept))
    return _Plan(recipe, columns, kept, left_out, size, recipe.steps_per_epoch or len(kept) // size)


def _kept(train: Features, plan: _Plan, seed: int) -> Callable[[int], Iterable[Batch]]:
    """Batches of the vectors that are there."""
    assert train.labels is not None
    labels = train.labels

    def batches(epoch: int) -> Iterator[Batch]:
        first = epoch * plan.steps_per_epoch
        for keys in batch_keys(len(plan.kept), plan.batch_size, seed, range(first, first + plan.steps_per_epoch)):
            rows = np.sort(plan.kept[[key.image for key in keys]])  # of a file that is mapped: in its order
            yield _vectors(train, rows, plan.columns), torch.from_numpy(labels[rows])

    return batches


def _augmented(
    model: BenchModel, data: BenchData, train: Features, plan: _Plan, config: LinearConfig
) -> Callable[[int], Iterable[Batch]]:
    """Batches of random crops that go through the network."""
    whole = data.open("train")
    source: ImageSource = SubsetSource(whole, train.images(whole)[plan.kept])
    assert source.labels is not None
    encoder, labels = model.sweep_encoder(plan.columns), torch.from_numpy(source.labels)
    view = View(encoder.spec.image_size, plan.recipe.interpolation)
    dataset = ViewDataset(source, seed=config.seed, crop=CropConfig(), views=(view,))

    def batches(epoch: int) -> Iterator[Batch]:
        first = epoch * plan.steps_per_epoch
        keys = batch_keys(len(source), plan.batch_size, config.seed, range(first, first + plan.steps_per_epoch))
        workers = auto_workers(model.config.data)
        for batch in make_loader(
            dataset, keys, plan.batch_size, num_workers=workers, pin=encoder.device.type == "cuda"
        ):
            check_readable(batch, source)
            yield _through(encoder, batch.views[0], model.config.batch_size), labels[batch.images]

    return batches


def _through(encoder: SweepEncoder, images: Tensor, size: int) -> Tensor:
    return torch.cat([encoder.columns_of_images(part) for part in images.split(size)])


def _vectors(features: Features, rows: Int64[np.ndarray, " row"], columns: list[Column]) -> Tensor:
    """[image, column, dim]"""
    return torch.from_numpy(features.vectors[rows]).unflatten(1, (max(1, len(columns)), -1))


def _ask(heads: LinearHeads, features: Features, rows: Int64[np.ndarray, " row"]) -> HeadAnswers:
    assert features.labels is not None
    labels, width = features.labels, features.vectors.shape[1]
    num_columns = width // _dim(heads)
    parts = [rows[start : start + EVALUATED_AT_ONCE] for start in range(0, len(rows), EVALUATED_AT_ONCE)]
    batches = (
        (torch.from_numpy(features.vectors[part]).unflatten(1, (num_columns, -1)), torch.from_numpy(labels[part]))
        for part in parts
    )
    return evaluate_heads(heads, batches)


def _dim(heads: LinearHeads) -> int:
    """Of one column."""
    first = heads.heads[0]
    assert isinstance(first, torch.nn.Linear)
    return first.in_features // len(heads.specs[0].columns)


def _state(model: BenchModel, data: BenchData, config: LinearConfig) -> Path:
    """Where the training is kept, by a name that anything its numbers depend on changes."""
    manifests = [model.cache.manifest(data, split).model_dump(mode="json") for split in TASK.splits]
    told = [TASK.version, config.model_dump(mode="json"), model.facts().model_dump(mode="json"), manifests]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return model.out / "runs" / f"linear-{digest}.pt"


def _choose(
    heads: LinearHeads, train: Features, plan: _Plan, history: History, config: LinearConfig
) -> tuple[int, HeadAnswers, Selection]:
    """Which head counts, its answers at the epoch that counts, and by what these were chosen."""
    assert history.last is not None
    assert history.best is not None
    if config.selection == "test":
        return int(history.best.top1.mean(axis=1).argmax()), history.best, "best on the test images"
    if not len(plan.left_out):
        return 0, history.last, "last"
    judged = _ask(heads, train, np.sort(plan.left_out)).top1.mean(axis=1)
    return int(judged.argmax()), history.last, "held-out images"


def _curve(history: History, chosen: int, name: str) -> Curve:
    return Curve(
        title=f"top-1 on the test images: {name}",
        x_label="epoch",
        x=tuple(float(i + 1) for i in range(len(history.top1))),
        lines={"": tuple(scores[chosen] for scores in history.top1)},
    )


def _remarks(config: LinearConfig, plan: _Plan, name: str, model: BenchModel) -> tuple[str, ...]:
    remarks = [f"head: {name}"]
    if plan.batch_size < plan.recipe.batch_size:
        remarks.append(
            f"batches of {plan.batch_size} images, as there are no more; the recipe has {plan.recipe.batch_size}"
        )
    if not config.augment:
        remarks.append("without augmentation: every epoch sees the same vectors")
    if model.kind != "torch":
        remarks.append("the heads see the embedding, as the model gives no other vector")
    return tuple(remarks)


SHORT: dict[str, Any] = {"augment": False, "epochs": 20, "batch_size": 256}
PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {**SHORT, "epochs": 3, "batch_size": 64},
    "short": SHORT,
    "paper": {},
}
TASK = BenchTask(
    "linear", 1, "linear probes by gradient descent: beit, mae, dinov2", "embedding", "labelled", LinearConfig,
    PRESETS, run,
)  # fmt: skip
