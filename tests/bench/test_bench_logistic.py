"""Logistic regression, against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mcbeit.bench import logistic
from mcbeit.bench.logistic import Logistic, fit_logistic
from mcbeit.errors import BenchError

STRENGTHS = (1e-6, 1e-3, 1e-1, 1.0, 1e2, 1e5)


def images(count: int, dim: int, num_classes: int, *, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised features of classes that overlap the less, the further their means are apart."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=count - num_classes)])
    features = distance * rng.standard_normal((num_classes, dim))[labels] + rng.standard_normal((count, dim))
    return ((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32), labels


def probabilities(fitted: Logistic, features: np.ndarray) -> np.ndarray:
    return torch.from_numpy(fitted.scores(features)).double().softmax(dim=2).numpy()


def assert_like_scikit_learn(features: np.ndarray, labels: np.ndarray, fitted: Logistic, place: int, c: float) -> None:
    features = features.astype(np.float64)
    theirs = LogisticRegression(C=c, tol=1e-12, max_iter=50_000).fit(features, labels)
    weights = fitted.weights[place].double().numpy()
    assert np.allclose(probabilities(fitted, features)[place], theirs.predict_proba(features), atol=1e-4)
    expected = np.column_stack([theirs.coef_, theirs.intercept_])
    assert np.abs(weights - expected + expected.mean(axis=0)).max() < 2e-3 * np.abs(expected).max()
    assert (fitted.predict(features)[place] == labels).mean() == theirs.score(features, labels)


@pytest.mark.parametrize(("num_classes", "dim"), [(3, 5), (10, 30)])
def test_fit_logistic__agrees_with_scikit_learn_for_all_strengths_at_once(num_classes: int, dim: int) -> None:
    features, labels = images(600, dim, num_classes, distance=0.4)
    fitted = fit_logistic(features, labels, num_classes, STRENGTHS, tolerance=1e-13)
    assert fitted.converged.all()
    assert (fitted.iterations < 500).all()
    for place, c in enumerate(STRENGTHS):
        assert_like_scikit_learn(features, labels, fitted, place, c)


def test_fit_logistic__agrees_where_variances_are_unlike() -> None:
    features, labels = images(400, 12, 4, distance=1.0)
    features = features * np.logspace(0, -2, 12, dtype=np.float32) + 3
    fitted = fit_logistic(features, labels, 4, [1.0, 100.0], tolerance=1e-13)
    for place, c in enumerate([1.0, 100.0]):
        assert_like_scikit_learn(features, labels, fitted, place, c)


def test_fit_logistic__of_two_classes_penalises_the_difference_as_scikit_learn_does() -> None:
    features, labels = images(200, 4, 2, distance=0.5)
    fitted = fit_logistic(features, labels, 2, [0.01, 1.0], tolerance=1e-13)
    for place, c in enumerate([0.01, 1.0]):
        theirs = LogisticRegression(C=c, tol=1e-12).fit(features.astype(np.float64), labels)
        assert np.allclose(probabilities(fitted, features)[place], theirs.predict_proba(features), atol=1e-4)


def test_fit_logistic__one_strength_alone_is_as_within_a_set() -> None:
    features, labels = images(300, 8, 4, distance=0.5)
    together = fit_logistic(features, labels, 4, STRENGTHS)
    for place, c in enumerate(STRENGTHS):
        alone = fit_logistic(features, labels, 4, [c])
        assert torch.allclose(alone.weights[0], together.weights[place], rtol=1e-3, atol=1e-4)
        assert np.array_equal(alone.predict(features)[0], together.predict(features)[place])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_logistic__stays_finite_where_classes_are_apart(dtype: str) -> None:
    features, labels = images(200, 50, 5, distance=5.0)
    fitted = fit_logistic(features, labels, 5, [1e5, 1e12], dtype=dtype)
    assert fitted.weights.isfinite().all()
    assert (fitted.predict(features) == labels).all()


def test_fit_logistic__float32_is_close() -> None:
    features, labels = images(600, 20, 6, distance=0.4)
    single, double = (fit_logistic(features, labels, 6, STRENGTHS, dtype=dtype) for dtype in ("float32", "float64"))
    assert single.weights.dtype == torch.float32
    assert single.converged.all()
    assert np.allclose(probabilities(single, features), probabilities(double, features), atol=1e-3)


def test_fit_logistic__does_not_depend_on_chunks_or_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = images(100, 6, 3, distance=0.5)
    whole = fit_logistic(features, labels, 3, [0.1, 1.0, 10.0])
    monkeypatch.setattr(logistic, "CHUNK_BYTES", 8 * 7 * 9)
    monkeypatch.setattr(logistic, "STATE_BYTES", 2 * 8 * 30 * 3 * 7)
    parts = fit_logistic(features, labels, 3, [0.1, 1.0, 10.0])
    assert torch.allclose(parts.weights, whole.weights, rtol=1e-3, atol=1e-5)
    assert np.allclose(parts.scores(features), whole.scores(features), atol=1e-3)
    assert np.array_equal(parts.predict(features), whole.predict(features))


def test_fit_logistic__a_class_without_images_is_never_predicted() -> None:
    features, labels = images(200, 5, 3, distance=0.5)
    without = fit_logistic(features, labels, 3, [1.0])
    fitted = fit_logistic(features, np.array([0, 2, 3])[labels], 5, [1.0])
    assert torch.equal(fitted.weights[:, [0, 2, 3]], without.weights)
    assert np.isneginf(fitted.scores(features)[0][:, [1, 4]]).all()
    assert set(fitted.predict(features)[0]) == {0, 2, 3}


def test_fit_logistic__says_what_has_not_converged() -> None:
    features, labels = images(200, 5, 3, distance=0.5)
    fitted = fit_logistic(features, labels, 3, [1e-6, 1e2], max_iterations=3)
    assert fitted.converged.tolist() == [True, False]
    assert fitted.iterations[1] == 3


def test_fit_logistic__reads_mapped_halves_and_tensors(tmp_path: Path) -> None:
    features, labels = images(100, 5, 3, distance=0.5)
    halves = features.astype(np.float16)
    np.save(tmp_path / "features.npy", halves)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    fitted = fit_logistic(mapped, labels, 3, [1.0])
    of_tensors = fit_logistic(torch.from_numpy(halves), labels, 3, [1.0])
    assert torch.equal(fitted.weights, of_tensors.weights)
    assert np.array_equal(fitted.predict(mapped), of_tensors.predict(torch.from_numpy(halves)))


def test_fit_logistic__errors() -> None:
    features, labels = images(50, 5, 3, distance=0.5)
    with pytest.raises(BenchError, match=r"labels lie in 0 to 2, not in 0 to 1"):
        fit_logistic(features, labels, 2, [1.0])
    with pytest.raises(BenchError, match=r"labels lie in -1 to 1"):
        fit_logistic(features, labels - 1, 3, [1.0])
    with pytest.raises(BenchError, match=r"labels of 50 images name less than two classes"):
        fit_logistic(features, np.ones_like(labels), 3, [1.0])
    with pytest.raises(BenchError, match=r"strength C=0 is not positive"):
        fit_logistic(features, labels, 3, [1.0, 0.0])
    features[7, 2] = np.inf
    with pytest.raises(BenchError, match=r"features of image 7 are not finite"):
        fit_logistic(features, labels, 3, [1.0])
