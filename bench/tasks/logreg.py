"""Logistic regression on frozen embeddings, its strength chosen on images that are left out of the fit.

As DINOv2 measures: no augmentation, L2, L-BFGS in double precision, 45 strengths at once, a tenth of the training
images to choose by, then one more fit on all of them.
"""

import time
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.logistic import fit_logistic
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Answers, Curve, Selection, accuracy, by_class, confusion_counts
from mcbeit.bench.scaling import Scaling, scaled
from mcbeit.bench.tasks.task import MAX_CONFUSED, BenchTask, Outcome, TaskConfig
from mcbeit.errors import BenchError


class LogregConfig(TaskConfig):
    """The settings of `logreg`."""

    num_strengths: int = Field(45, ge=1)  # evenly spread in the logarithm
    smallest: float = Field(1e-6, gt=0)  # as C of scikit-learn: the larger, the weaker the pull to zero
    largest: float = Field(1e5, gt=0)
    held_out: float = Field(0.1, gt=0, lt=1)  # of the training images, to choose C by
    selection: Literal["held-out", "test"] = "held-out"  # test: the best of all on the test images, as some report
    scaling: Scaling = "none"  # as DINOv2 does; standardised vectors converge faster
    max_iterations: int = Field(1000, ge=1)
    precision: Literal["fp32", "fp64"] = "fp64"

    @property
    def strengths(self) -> list[float]:
        """All C, ascending."""
        return np.geomspace(self.smallest, self.largest, self.num_strengths).tolist()


def run(model: BenchModel, data: BenchData, config: LogregConfig) -> Outcome:
    """Fit on `train`, measure on `val`."""
    train, val = model.features(data, "train"), model.features(data, "val")
    assert train.labels is not None
    assert val.labels is not None
    before = time.monotonic()
    images, tests = scaled(train.vectors, val.vectors, config.scaling, unit=False)
    num_classes = len(train.classes)
    fits = _Fits(config, num_classes)
    selection: Selection
    if config.selection == "test":
        scores = fits.right(images, train.labels, tests, val.labels)
        judged, selection = scores.mean(axis=1), "best on the test images"
        chosen = int(judged.argmax())
        guess = fits.guess[chosen]
    else:
        kept, left_out = cut(len(images), config.held_out, config.seed, key="logreg.held_out")
        judged = fits.right(images[kept], train.labels[kept], images[left_out], train.labels[left_out]).mean(axis=1)
        chosen, selection = int(judged.argmax()), "held-out images"
        fits.right(images, train.labels, tests, val.labels, only=chosen)
        guess = fits.guess[0]
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
                lines={"": tuple(map(float, judged))},
            ),
        ),
        answers=Answers.of("top1", correct),
        remarks=_remarks(config, chosen, fits.unfinished),
        seconds={"fit": time.monotonic() - before},
    )
    outcome.note_features(train=train, val=val)
    return outcome


class _Fits:
    """Fits of all strengths on some images, asked about others."""

    def __init__(self, config: LogregConfig, num_classes: int) -> None:
        self.config, self.num_classes = config, num_classes
        self.guess: Int64[np.ndarray, "strength image"] = np.zeros((0, 0), np.int64)
        self.unfinished = 0  # of the last fit

    def right(
        self,
        images: np.ndarray,
        labels: Int64[np.ndarray, " image"],
        asked: np.ndarray,
        truth: Int64[np.ndarray, " asked"],
        *,
        only: int | None = None,
    ) -> Float[np.ndarray, "strength asked"]:
        """Whether each strength, or `only` one, classifies each image rightly."""
        strengths = self.config.strengths if only is None else [self.config.strengths[only]]
        fitted = fit_logistic(
            images,
            labels,
            self.num_classes,
            strengths,
            max_iterations=self.config.max_iterations,
            dtype="float64" if self.config.precision == "fp64" else "float32",
        )
        self.unfinished = int((~np.asarray(fitted.converged)).sum())
        self.guess = fitted.predict(asked)
        return (self.guess == truth).astype(np.float64)


def cut(
    count: int, held_out: float, seed: int, *, key: str
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " left_out"]]:
    """Which images are fitted to, and which ones choose. Raises BenchError, which names `key`, if either is none."""
    num_left_out = round(count * held_out)
    if not 0 < num_left_out < count:
        raise BenchError(f"{key}={held_out:g} of {count} images leaves nothing to fit or to choose by")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_left_out:]), np.sort(order[:num_left_out])


def _remarks(config: LogregConfig, chosen: int, unfinished: int) -> tuple[str, ...]:
    remarks = [f"C = {config.strengths[chosen]:.3g}"]
    if len(config.strengths) > 1 and chosen in (0, len(config.strengths) - 1):
        remarks.append("C is the last of those that were tried: a wider range may do better")
    if unfinished:
        remarks.append(f"{unfinished} fits had not converged after {config.max_iterations} iterations")
    return tuple(remarks)


PRESETS: dict[Any, dict[str, Any]] = {
    "smoke": {"num_strengths": 7, "max_iterations": 100, "precision": "fp32", "scaling": "standardise"},
    "short": {"num_strengths": 8, "max_iterations": 200, "precision": "fp32", "scaling": "standardise"},
    "paper": {},
}
TASK = BenchTask(
    "logreg", 1, "logistic regression on frozen embeddings", "embedding", "labelled", LogregConfig, PRESETS, run
)
