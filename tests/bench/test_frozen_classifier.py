"""Classifiers that are fitted once: the same answers as their tasks give, and out of some classes if that is asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcbeit.bench.features import Features
from mcbeit.bench.manifest import Used
from mcbeit.bench.tasks import frozen_classifier
from mcbeit.bench.tasks.frozen_classifier import FrozenClassifier, LogisticClassifier, NearestClassifier
from mcbeit.bench.tasks.logreg import Chosen, StrengthConfig, fit_chosen
from mcbeit.errors import BenchError

CENTRES = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.3], [0.0, -1.0]])


def features(per_class: int = 30) -> Features:
    """Four classes around directions of the plane."""
    labels = np.repeat(np.arange(4), per_class)
    vectors = CENTRES[labels] + np.random.default_rng(0).normal(0, 0.08, (len(labels), 2))
    return Features(
        vectors=vectors.astype(np.float32),
        labels=labels,
        names=[str(i) for i in range(len(labels))],
        classes=list("abcd"),
        used=Used(num_used=len(labels), num_unreadable=0),
        path=Path(),
    )


@pytest.fixture(params=["nearest", "logistic", "scaled"])
def classifier(request: pytest.FixtureRequest) -> FrozenClassifier:
    if request.param == "nearest":
        return NearestClassifier(features(), 5, 0.07, key="k")
    scaling = "standardise" if request.param == "scaled" else "none"
    return LogisticClassifier(features(), StrengthConfig(num_strengths=5, smallest=0.1, scaling=scaling), 0, key="l")


def test_all_classes_are_found(classifier: FrozenClassifier) -> None:
    asked = CENTRES.astype(np.float32)
    np.testing.assert_array_equal(classifier.predict(asked), [0, 1, 2, 3])


def test_some_classes_are_the_only_answers(classifier: FrozenClassifier) -> None:
    asked = CENTRES.astype(np.float32)
    np.testing.assert_array_equal(classifier.predict(asked, np.array([1, 2])), [1, 1, 2, 2])
    assert set(classifier.predict(asked, np.array([3]))) == {3}


def test_remarks_tell_what_it_is() -> None:
    assert NearestClassifier(features(), 5, 0.07, key="k").remarks == ("k-NN, k=5, T=0.07",)
    kind, strength, *_ = LogisticClassifier(features(), StrengthConfig(num_strengths=3, smallest=1), 0, key="l").remarks
    assert (kind, strength[:4]) == ("logistic regression", "C = ")


def test_vectors_that_need_no_scaling_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ImageNet's training images take 4 GB, and are mapped from a file."""
    seen: list[np.ndarray] = []

    def fit(config: StrengthConfig, images: np.ndarray, *rest: Any, **names: Any) -> Chosen:
        seen.append(images)
        return fit_chosen(config, images, *rest, **names)

    monkeypatch.setattr(frozen_classifier, "fit_chosen", fit)
    train = features()
    LogisticClassifier(train, StrengthConfig(num_strengths=1, smallest=1), 0, key="l")
    assert np.shares_memory(seen[0], train.vectors)


def test_fewer_images_than_neighbours_are_one_error() -> None:
    with pytest.raises(BenchError, match=r"robustness\.k=5, but there are only 4 training images"):
        NearestClassifier(features(1), 5, 0.07, key="robustness.k")
