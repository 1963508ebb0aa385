"""Logistic regression on frozen embeddings, its strength chosen on images that are left out of the fit.

As DINOv2 measures: no augmentation, L2, L-BFGS in double precision, 45 strengths at once, a tenth of the training
images to choose by, then one more fit on all of them.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.logistic import Logistic, fit_logistic
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Answers, Curve, Selection, accuracy, by_class, confusion_counts
from mcbeit.bench.scaling import Scaling, Vectors, scaled
from mcbeit.bench.tasks.task import MAX_CONFUSED, BenchTask, Outcome, TaskConfig
from mcbeit.config import Config
from mcbeit.errors import BenchError


class StrengthConfig(Config):
    """Which strengths are tried, and how each is fitted."""

    num_strengths: int = Field(45, ge=1)  # evenly spread in the logarithm
    smallest: float = Field(1e-6, gt=0)  # as C of scikit-learn: the larger, the weaker the pull to zero
    largest: float = Field(1e5, gt=0)
    held_out: float = Field(0.1, gt=0, lt=1)  # of the training images, to choose C by
    scaling: Scaling = "none"  # as DINOv2 does; standardised vectors converge faster
    max_iterations: int = Field(1000, ge=1)
    precision: Literal["fp32", "fp64"] = "fp64"

    @property
    def strengths(self) -> list[float]:
        """All C, ascending."""
        return np.geomspace(self.smallest, self.largest, self.num_strengths).tolist()


class LogregConfig(StrengthConfig, TaskConfig):
    """The settings of `logreg`."""

    selection: Literal["held-out", "test"] = "held-out"  # test: the best of all on the test images, as some report


class Chosen(NamedTuple):
    """The strength that is best on some images."""

    classifier: Logistic  # of this strength alone
    place: int  # of the strength among all that were tried
    judged: Float[np.ndarray, " strength"]  # the share of right answers of all of them
    num_unfinished: int  # fits that have not converged


def run(model: BenchModel, data: BenchData, config: LogregConfig) -> Outcome:
    """Fit on `train`, measure on `val`."""
    train, val = model.features(data, "train"), model.features(data, "val")
    assert train.labels is not None
    assert val.labels is not None
    before = time.monotonic()
    images, tests = scaled(train.vectors, val.vectors, config.scaling, unit=False)
    num_classes = len(train.classes)
    selection: Selection
    if config.selection == "test":
        fitted = _fit(config, config.strengths, images, train.labels, num_classes)
        place, judged = _best(fitted, tests, val.labels)
        chosen = Chosen(fitted.only(place), place, judged, _unfinished(fitted))
        selection = "best on the test images"
    else:
        chosen = fit_chosen(config, images, train.labels, num_classes, seed=config.seed, key="logreg.held_out")
        selection = "held-out images"
    guess = chosen.classifier.predict(tests)[0]
    correct = guess == val.labels
    outcome = Outcome(
        primary="top1",
        metrics={"top1": accuracy(correct, selection)},
        used={},
        per_class={"top1": by_class(correct, val.labels, num_classes)},
        confusion=confusion_counts(val.labels, guess, num_classes) if num_classes <= MAX_CONFUSED else None,
        curves=(
            Curve(
                title=f"top-1 on the {'test' if config.selection == 'test' else 'held-out'} images by strength",
                x_label="C",
                x=tuple(config.strengths),
                lines={"": tuple(map(float, chosen.judged))},
            ),
        ),
        answers=Answers.of("top1", correct),
        remarks=strength_remarks(config, chosen),
        seconds={"fit": time.monotonic() - before},
    )
    outcome.note_features(train=train, val=val)
    return outcome


def fit_chosen(
    config: StrengthConfig,
    images: Vectors,
    labels: Int64[np.ndarray, " image"],
    num_classes: int,
    *,
    seed: int,
    key: str,
) -> Chosen:
    """Choose the strength by images that are left out, then fit it to all. `key`, the share of these, is for errors."""
    kept, left_out = cut(len(images), config.held_out, seed, key=key)
    tried = _fit(config, config.strengths, images[kept], labels[kept], num_classes)
    place, judged = _best(tried, images[left_out], labels[left_out])
    fitted = _fit(config, [config.strengths[place]], images, labels, num_classes)
    return Chosen(fitted, place, judged, _unfinished(fitted))


def _fit(
    config: StrengthConfig,
    strengths: Sequence[float],
    images: Vectors,
    labels: Int64[np.ndarray, " image"],
    num_classes: int,
) -> Logistic:
    return fit_logistic(
        images,
        labels,
        num_classes,
        strengths,
        max_iterations=config.max_iterations,
        dtype="float64" if config.precision == "fp64" else "float32",
    )


def _best(
    fitted: Logistic, asked: Vectors, truth: Int64[np.ndarray, " asked"]
) -> tuple[int, Float[np.ndarray, " strength"]]:
    judged = (fitted.predict(asked) == truth).mean(axis=1)
    return int(judged.argmax()), judged


def _unfinished(fitted: Logistic) -> int:
    return int((~np.asarray(fitted.converged)).sum())


def cut(
    count: int, held_out: float, seed: int, *, key: str
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " left_out"]]:
    """Which images are fitted to, and which ones choose. Raises BenchError, which names `key`, if either is none."""
    num_left_out = round(count * held_out)
    if not 0 < num_left_out < count:
        raise BenchError(f"{key}={held_out:g} of {count} images leaves nothing to fit or to choose by")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_left_out:]), np.sort(order[:num_left_out])


def strength_remarks(config: StrengthConfig, chosen: Chosen) -> tuple[str, ...]:
    """What must be read with the numbers of a classifier whose strength was chosen."""
    remarks = [f"C = {config.strengths[chosen.place]:.3g}"]
    if len(config.strengths) > 1 and chosen.place in (0, len(config.strengths) - 1):
        remarks.append("C is the last of those that were tried: a wider range may do better")
    if chosen.num_unfinished:
        remarks.append(f"{chosen.num_unfinished} fits had not converged after {config.max_iterations} iterations")
    return tuple(remarks)


# a strength per power of ten, where those of standardised vectors are found
QUICK = {"smallest": 1e-5, "largest": 1e2, "num_strengths": 8, "precision": "fp32", "scaling": "standardise"}
PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {**QUICK, "max_iterations": 100},
    "short": {**QUICK, "max_iterations": 200},
    "paper": {},
}
TASK = BenchTask(
    "logreg", 1, "logistic regression on frozen embeddings", "embedding", "labelled", LogregConfig, PRESETS, run
)
