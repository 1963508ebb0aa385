"""How neighbours vote."""

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mcbeit.bench import voting
from mcbeit.bench.voting import Votes, vote
from mcbeit.errors import BenchError

SCORES = np.array([[0.9, 0.8, 0.79, 0.1]], dtype=np.float32)
LABELS = np.array([[2, 0, 0, 1]])


def one(votes: Votes) -> tuple[int, bool, bool]:
    """The only entry of each array."""
    return votes.predicted.item(), votes.top1.item(), votes.top5.item()


def test_vote__the_nearest_wins_alone_and_is_outvoted_by_two() -> None:
    assert one(vote(SCORES, LABELS, np.array([2]), [1], [0.07], 3)) == (2, True, True)
    assert one(vote(SCORES, LABELS, np.array([2]), [3], [0.07], 3)) == (
        2,
        True,
        True,
    )  # 1 > e^(-0.1 / 0.07) + e^(-0.11 / 0.07)
    assert one(vote(SCORES, LABELS, np.array([2]), [3], [1.0], 3)) == (0, False, True)


def test_vote__weighs_by_the_exponential() -> None:
    scores, labels = np.array([[0.5, 0.4, 0.4]]), np.array([[1, 0, 0]])
    even = 0.1 / math.log(2)  # 1 = 2 exp(-0.1 / T)
    found = vote(scores, labels, np.array([1]), [3], [0.99 * even, 1.01 * even], 2)
    assert found.predicted[0, :, 0].tolist() == [1, 0]


def test_vote__all_k_and_temperatures_at_once_are_each_alone() -> None:
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((50, 30)), axis=1)[:, ::-1]
    labels, truth = rng.integers(8, size=(50, 30)), rng.integers(8, size=50)
    ks, temperatures = (30, 1, 7, 7), (0.02, 0.5)
    together = vote(scores, labels, truth, ks, temperatures, 8)
    for i, k in enumerate(ks):
        for j, temperature in enumerate(temperatures):
            alone = vote(scores[:, :k], labels[:, :k], truth, [k], [temperature], 8)
            for some, other in zip(together, alone, strict=True):
                assert np.array_equal(some[i, j], other[0, 0])
    assert together.top1.mean() < together.top5.mean() < 1
    assert np.array_equal(together.top1, together.predicted == truth)


def test_vote__top5_counts_the_classes_before_the_true_one() -> None:
    scores, labels = np.array(8 * [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]), np.array(8 * [[5, 4, 3, 2, 1, 0]])
    found = vote(scores, labels, np.arange(8), [6], [0.07], 8)
    assert found.predicted[0, 0].tolist() == 8 * [5]
    assert found.top5[0, 0].tolist() == [False, True, True, True, True, True, False, False]


def test_vote__of_equal_sums_the_first_class_goes_before() -> None:
    scores, labels = np.full((2, 2), 0.5), np.array([[3, 1], [1, 3]])
    assert vote(scores, labels, np.array([1, 3]), [2], [0.07], 4).predicted[0, 0].tolist() == [1, 1]
    nobody = vote(scores, labels, np.array([0, 2]), [2], [0.07], 4)  # classes 0 and 2 follow 1 and 3, in this order
    assert nobody.top5.all()
    assert not nobody.top1.any()


def test_vote__does_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = vote(np.array([[1000.0, 999.0, -1000.0]]), np.array([[0, 1, 1]]), np.array([0]), [3], [1e-3], 2)
    assert one(found) == (0, True, True)


def test_vote__in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    data = rng.random((40, 9)), rng.integers(5, size=(40, 9)), rng.integers(5, size=40)
    whole = vote(*data, [3, 9], [0.1], 5)
    monkeypatch.setattr(voting, "BLOCK_BYTES", 8 * 5 * 7)
    for some, other in zip(whole, vote(*data, [3, 9], [0.1], 5), strict=True):
        assert np.array_equal(some, other)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_vote__agrees_with_scikit_learn(temperature: float) -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((6, 10))
    labels, truth = rng.integers(6, size=300), rng.integers(6, size=80)
    gallery, queries = (centres[y] + 1.5 * rng.standard_normal((len(y), 10)) for y in (labels, truth))
    cosine = queries @ gallery.T / np.outer(*(np.linalg.norm(vectors, axis=1) for vectors in (queries, gallery)))
    nearest = np.argsort(-cosine, axis=1)[:, :20]
    found = vote(np.take_along_axis(cosine, nearest, axis=1), labels[nearest], truth, [20], [temperature], 6)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature))
    assert np.array_equal(found.predicted[0, 0], theirs.fit(gallery, labels).predict(queries))
    assert 0.4 < found.top1.mean() < 1


def test_vote__errors() -> None:
    truth = np.array([0])
    with pytest.raises(BenchError, match=r"k=5 neighbours cannot vote where there are 4"):
        vote(SCORES, LABELS, truth, [1, 5], [0.07], 3)
    with pytest.raises(BenchError, match=r"k=0 neighbours"):
        vote(SCORES, LABELS, truth, [0], [0.07], 3)
    with pytest.raises(BenchError, match=r"temperature=0 is not positive"):
        vote(SCORES, LABELS, truth, [1], [0.0], 3)
    with pytest.raises(BenchError, match=r"labels of neighbours lie in 0 to 2, not 0 to 1"):
        vote(SCORES, LABELS, truth, [1], [0.07], 2)
    with pytest.raises(BenchError, match=r"labels of queries lie in -1 to -1"):
        vote(SCORES, LABELS, np.array([-1]), [1], [0.07], 3)
