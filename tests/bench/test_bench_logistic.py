"""Logistic regression for many strengths at once is scikit-learn's for each of them."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mcbeit.bench.logistic import fit_logistic
from mcbeit.errors import BenchError

STRENGTHS = (1e-6, 1e-3, 0.1, 1.0, 100.0, 1e5)


def blobs(count: int = 240, dim: int = 6, num_classes: int = 4, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Clouds that overlap, so that even a weak pull has a minimum."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, count)
    centres = rng.standard_normal((num_classes, dim))
    features = centres[labels] + spread * rng.standard_normal((count, dim))
    return (features / features.std(axis=0)).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [3, 4])
def test_every_strength_gives_scikit_learns_probabilities(num_classes: int) -> None:
    features, labels = blobs(num_classes=num_classes)
    found = fit_logistic(features, labels, num_classes, STRENGTHS, tolerance=1e-9)
    ours = torch.softmax(torch.from_numpy(found.scores(features)), dim=2).numpy()
    for strength, mine in zip(STRENGTHS, ours, strict=True):
        theirs = LogisticRegression(C=strength, max_iter=10000, tol=1e-9).fit(features.astype(np.float64), labels)
        np.testing.assert_allclose(mine, theirs.predict_proba(features), atol=1e-4)
    assert found.converged.all()


def test_coefficients_are_the_same_up_to_what_softmax_does_not_see() -> None:
    features, labels = blobs()
    mine = fit_logistic(features, labels, 4, [1.0], tolerance=1e-10).weights[0].numpy()
    theirs = LogisticRegression(C=1.0, max_iter=10000, tol=1e-10).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(
        mine[:, :-1] - mine[:, :-1].mean(axis=0), theirs.coef_ - theirs.coef_.mean(axis=0), atol=1e-4
    )


def test_a_strength_is_fitted_alone_as_among_others() -> None:
    features, labels = blobs()
    together = fit_logistic(features, labels, 4, STRENGTHS, tolerance=1e-9)
    alone = fit_logistic(features, labels, 4, [STRENGTHS[2]], tolerance=1e-9)
    np.testing.assert_allclose(together.weights[2].numpy(), alone.weights[0].numpy(), atol=1e-6)


def test_single_precision_gives_the_same_answers() -> None:
    features, labels = blobs()
    single, double = (
        fit_logistic(features, labels, 4, [1.0], dtype=kind).predict(features) for kind in ("float32", "float64")
    )
    assert (single == double).mean() > 0.99


def test_classes_that_can_be_parted_and_a_weak_pull_stay_finite() -> None:
    features, labels = blobs(spread=0.01)
    found = fit_logistic(features, labels, 4, [1e12], max_iterations=200)
    assert torch.isfinite(found.weights).all()
    assert (found.predict(features)[0] == labels).all()


def test_a_class_without_images_is_never_the_answer() -> None:
    features, labels = blobs(num_classes=3)
    assert fit_logistic(features, labels, 5, [1.0]).predict(features).max() <= 2


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs()
    whole = fit_logistic(features, labels, 4, [0.1, 1.0])
    monkeypatch.setattr("mcbeit.bench.logistic.LOGIT_BYTES", 8 * 2 * 4 * 50)  # 50 images at a time
    parts = fit_logistic(features, labels, 4, [0.1, 1.0])
    np.testing.assert_allclose(parts.weights.numpy(), whole.weights.numpy(), atol=1e-5)
    assert (parts.predict(features) == whole.predict(features)).all()


def test_fits_that_are_cut_short_say_so() -> None:
    features, labels = blobs()
    found = fit_logistic(features, labels, 4, [1e-6, 1e5], max_iterations=2)
    assert found.converged.tolist()[1] is False
    assert found.iterations.tolist()[1] == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": np.zeros(240, np.int64)}, "all images have one class"),
        ({"num_classes": 2}, "labels go from 0 to 3, but there are 2 classes"),
        ({"features": np.full((240, 6), np.nan, np.float32)}, "not finite"),
    ],
)
def test_what_cannot_be_fitted_is_one_error(change: dict[str, Any], told: str) -> None:
    features, labels = blobs()
    given = {"features": features, "labels": labels, "num_classes": 4, **change}
    with pytest.raises(BenchError, match=told):
        fit_logistic(given["features"], given["labels"], given["num_classes"], [1.0])
