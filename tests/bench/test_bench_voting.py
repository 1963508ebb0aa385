"""The vote of the neighbours, by hand and beside scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mcbeit.bench.voting import vote


def one_query(scores: list[float], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([scores], np.float32), np.array([labels])


def test_a_near_neighbour_counts_more_than_two_far_ones() -> None:
    scores, labels = one_query([0.9, 0.5, 0.5], [1, 0, 0])
    found = vote(scores, labels, np.array([1]), (3,), (0.1, 10.0), 2)
    # exp(9) > 2 exp(5), but exp(0.09) < 2 exp(0.05)
    assert found.predicted[0, :, 0].tolist() == [1, 0]
    assert found.top1[0, :, 0].tolist() == [True, False]


def test_every_k_has_its_own_vote() -> None:
    scores, labels = one_query([0.9, 0.8, 0.8], [1, 0, 0])
    found = vote(scores, labels, np.array([0]), (1, 3), (0.07,), 3)
    assert 2 * math.exp(0.8 / 0.07) < math.exp(0.9 / 0.07)
    assert found.predicted[:, 0, 0].tolist() == [1, 1]
    assert found.predicted.shape == (2, 1, 1)


def test_equal_votes_go_to_the_first_class() -> None:
    scores, labels = one_query([0.5, 0.5], [2, 1])
    assert vote(scores, labels, np.array([2]), (2,), (0.07,), 3).predicted[0, 0, 0] == 1


def test_top5_are_classes_that_were_voted_for() -> None:
    scores, labels = one_query([0.9, 0.8], [3, 4])
    for truth, expected in ((4, True), (0, False)):  # class 0 has no vote: being first among the rest is no merit
        assert vote(scores, labels, np.array([truth]), (2,), (0.07,), 9).top5[0, 0, 0] == expected


def test_cold_temperatures_do_not_overflow() -> None:
    scores, labels = one_query([1.0, 0.99], [0, 1])
    assert vote(scores, labels, np.array([0]), (2,), (1e-4,), 2).top1[0, 0, 0]


def test_more_neighbours_than_there_are_is_an_error() -> None:
    scores, labels = one_query([1.0], [0])
    with pytest.raises(ValueError, match="k=2, but there are only 1"):
        vote(scores, labels, np.array([0]), (2,), (0.07,), 2)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_it_is_scikit_learns_with_the_same_weights(k: int) -> None:
    rng = np.random.default_rng(0)
    gallery, queries = (rng.standard_normal((count, 6)).astype(np.float32) for count in (300, 100))
    gallery, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (gallery, queries))
    labels = rng.integers(0, 4, 300)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    expected = theirs.fit(gallery, labels).predict(queries)
    similarity = queries @ gallery.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :20]
    scores = np.take_along_axis(similarity, nearest, axis=1)
    found = vote(scores, labels[nearest], labels[:100], (k,), (0.07,), 4)
    assert (found.predicted[0, 0] == expected).all()
