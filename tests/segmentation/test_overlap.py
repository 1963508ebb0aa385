"""Mean IoU: hand-computed, of the data set and not of its images, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.overlap import areas, bootstrap_mean_iou, overlap


def test_overlap__of_a_case_by_hand() -> None:
    labels = np.array([[0, 0, 1], [1, 1, IGNORED]])
    found = np.array([[0, 1, 1], [1, 0, 0]])
    total = areas(found, labels, 3)
    assert total.tolist() == [[1, 2, 0], [2, 3, 0], [2, 3, 0]]
    scores = overlap(total)
    assert scores.iou[:2].tolist() == [1 / 3, 2 / 4]
    assert np.isnan(scores.iou[2])  # nowhere: it has no value
    assert scores.mean_iou == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert scores.pixel_accuracy == pytest.approx(3 / 5)
    assert scores.mean_accuracy == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_overlap__a_class_that_is_found_but_not_there_counts_as_zero() -> None:
    scores = overlap(areas(np.array([[0, 2]]), np.array([[0, 0]]), 3))
    assert scores.iou.tolist()[::2] == [0.5, 0.0]
    assert scores.mean_iou == 0.25
    assert scores.mean_accuracy == 0.5  # of classes that are there


def test_overlap__is_that_of_all_images_together() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, (9, 11)) for _ in range(6)]
    found = [np.where(rng.random((9, 11)) < 0.5, one, rng.integers(0, 4, (9, 11))) for one in labels]
    labels[2][:, :5] = IGNORED
    each = np.stack([areas(a, b, 4) for a, b in zip(found, labels, strict=True)])
    flat_labels, flat_found = (
        np.concatenate([one.ravel() for one in labels]),
        np.concatenate([f.ravel() for f in found]),
    )
    is_counted = flat_labels != IGNORED
    expected = jaccard_score(flat_labels[is_counted], flat_found[is_counted], average=None)
    np.testing.assert_allclose(overlap(each.sum(axis=0)).iou, expected)
    by_image = np.mean([overlap(one).mean_iou for one in each])
    assert abs(by_image - expected.mean()) > 1e-3  # another number


def test_overlap__truth_as_prediction_is_one() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (20, 20))
    scores = overlap(areas(labels, labels, 5))
    assert (scores.mean_iou, scores.pixel_accuracy, scores.mean_accuracy) == (1.0, 1.0, 1.0)


def test_bootstrap__is_centred_and_as_wide_as_images_differ() -> None:
    rng = np.random.default_rng(1)
    right = rng.integers(20, 80, (50, 1, 3))
    each = np.concatenate([right, np.full((50, 1, 3), 100), np.full((50, 1, 3), 100)], axis=1)
    draws = bootstrap_mean_iou(each, seed=0, draws=400)
    assert draws.mean() == pytest.approx(overlap(each.sum(axis=0)).mean_iou, abs=0.01)
    assert 0.005 < draws.std() < 0.05
    same = bootstrap_mean_iou(np.repeat(each[:1], 50, axis=0), seed=0, draws=20)
    assert same.std() == pytest.approx(0, abs=1e-12)
    assert np.array_equal(bootstrap_mean_iou(each, seed=0, draws=5), draws[:5])
