"""Scalings are learned from the vectors that are trained on, and change both sets alike."""

import numpy as np
import pytest

from mcbeit.bench.scaling import fit_scaling, scaled

TRAIN = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32) @ np.diag([1, 2, 3, 4]).astype(np.float32)
TEST = TRAIN[:5] + 1


def test_none_leaves_them() -> None:
    train, test = scaled(TRAIN, TEST, "none", unit=False)
    assert train is TRAIN
    assert test is TEST


def test_standardised_vectors_have_deviation_one() -> None:
    train, test = scaled(TRAIN, TEST, "standardise", unit=False)
    np.testing.assert_allclose(train.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(test, (TEST - TRAIN.mean(axis=0)) / TRAIN.std(axis=0), rtol=1e-4, atol=1e-5)


def test_whitened_vectors_are_uncorrelated() -> None:
    train, _ = scaled(TRAIN @ np.triu(np.ones((4, 4), np.float32)), TEST, "whiten", unit=False)
    np.testing.assert_allclose(np.cov(train.T, bias=True), np.eye(4), atol=1e-3)


def test_centred_vectors_may_be_made_unit() -> None:
    train, _ = scaled(TRAIN, TEST, "centre", unit=True)
    np.testing.assert_allclose(np.linalg.norm(train, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("scaling", ["standardise", "whiten"])
def test_a_scaling_is_a_matrix_too(scaling: str) -> None:
    found = fit_scaling(TRAIN, scaling)  # type: ignore[arg-type]
    np.testing.assert_allclose(found(TEST), (TEST - found.mean) @ found.square(), rtol=1e-5, atol=1e-6)


def test_a_number_that_never_changes_stays_finite() -> None:
    flat = TRAIN.copy()
    flat[:, 0] = 7
    train, _ = scaled(flat, TEST, "standardise", unit=False)
    assert np.isfinite(train).all()
