"""Every metric by hand, and beside a slow one written from its formula."""

from collections.abc import Sequence

import numpy as np
import pytest

from mcbeit.bench.retrieval_metrics import (
    average_precision,
    average_precision_at_r,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
    trapezoidal_average_precision,
)
from mcbeit.bench.retrieval_set import Ranked, Relevance, judge

COUNTS = (1, 5, 10)


def hits(*rows: str) -> np.ndarray:
    """ "+.+" is a right image, a wrong one and a right one."""
    return np.array([[mark == "+" for mark in row] for row in rows])


def test_recall_at__is_whether_any_of_the_nearest_is_right() -> None:
    found = recall_at(hits("+...", "..+.", "....", "...."), np.array([1, 2, 1, 0]), [1, 2, 3])
    assert found[:3].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert np.isnan(found[3]).all()


def test_reciprocal_rank__is_of_the_nearest_right_image() -> None:
    found = reciprocal_rank(hits("+..+", "..++", "....", "...."), np.array([2, 2, 1, 0]))
    np.testing.assert_allclose(found, [1, 1 / 3, 0, np.nan])


def test_recall_at__ranks_that_are_not_there_are_misses() -> None:
    assert recall_at(hits("..", ".+"), np.array([1, 1]), [10]).tolist() == [[0], [1]]


def test_average_precision__is_over_all_right_images() -> None:
    found = average_precision(hits("+.+.", ".+..", "....", "...."), np.array([2, 2, 3, 0]))
    assert found[:3] == pytest.approx([(1 + 2 / 3) / 2, (1 / 2) / 2, 0])
    assert np.isnan(found[3])


def test_average_precision_at_r__looks_at_the_r_nearest_alone() -> None:
    """For R = 3: the precision at ranks 1 and 3, the right image at rank 5 does not count."""
    found = average_precision_at_r(hits("+.+.+", ".++++", "....."), np.array([3, 1, 0]))
    assert found[:2] == pytest.approx([(1 + 2 / 3) / 3, 0])
    assert np.isnan(found[2])


def test_r_precision__is_the_share_of_right_ones_among_the_r_nearest() -> None:
    found = r_precision(hits("+.+.+", ".++++", "....."), np.array([3, 1, 0]))
    assert found[:2] == pytest.approx([2 / 3, 0])
    assert np.isnan(found[2])


def test_metrics_at_r__need_as_many_ranks() -> None:
    for metric in (average_precision_at_r, r_precision):
        with pytest.raises(ValueError, match="4 images are right for a query; 3 ranks are too few"):
            metric(hits("+++"), np.array([4]))


def test_trapezoidal_average_precision__is_the_area_by_trapezoids() -> None:
    found = trapezoidal_average_precision(hits("+.+", ".+.", "...", "..."), np.array([2, 1, 1, 0]))
    first = (1 + 1) / 2 * (1 / 2) + (1 / 2 + 2 / 3) / 2 * (1 / 2)
    assert found[:3] == pytest.approx([first, (0 + 1 / 2) / 2, 0])
    assert np.isnan(found[3])


def test_precision_at__is_cut_at_the_last_right_image() -> None:
    found = precision_at(hits("+.+....", "++.....", "......."), np.array([2, 2, 0]), [1, 2, 5])
    assert found[:2] == pytest.approx(np.array([[1, 1 / 2, 2 / 3], [1, 1, 1]]))
    assert np.isnan(found[2]).all()


def test_precision_at__is_not_cut_where_right_images_are_still_to_come() -> None:
    assert precision_at(hits("+.+.."), np.array([3]), [5]) == pytest.approx(np.array([[2 / 5]]))


# beside the formulas


def slow_revisited(ranking: Sequence[int], right: set[int], junk: set[int]) -> tuple[float, list[float]]:
    """The integral of precision over recall, step by step; and precision at COUNTS, or at the last right image."""
    if not right:
        return np.nan, [np.nan] * len(COUNTS)
    area, places, before = 0.0, [], [image for image in ranking if image not in junk]
    for place, image in enumerate(before):
        if image in right:
            lower = len(places) / place if place else 1.0
            places.append(place)
            upper = len(places) / (place + 1)
            area += (lower + upper) / 2 / len(right)
    cuts = [min(count, places[-1] + 1) for count in COUNTS]
    return area, [sum(place < cut for place in places) / cut for cut in cuts]


def slow_metric_learning(ranking: Sequence[int], right: set[int], junk: set[int]) -> list[float]:
    """Average precision, the same at R, R-precision, and recall at COUNTS."""
    if not right:
        return [np.nan] * (3 + len(COUNTS))
    marks = [image in right for image in ranking if image not in junk]
    precision = [sum(marks[: i + 1]) / (i + 1) for i in range(len(marks))]
    terms = [value if mark else 0.0 for value, mark in zip(precision, marks, strict=True)]
    r = len(right)
    recalls = [float(any(marks[:count])) for count in COUNTS]
    return [sum(terms) / r, sum(terms[:r]) / r, sum(marks[:r]) / r, *recalls]


def random_case(seed: int) -> tuple[np.ndarray, Relevance]:
    """Rankings by similarities with many ties, some queries with nothing right, some without junk."""
    rng = np.random.default_rng(seed)
    num_queries, num_images = rng.integers(1, 8), rng.integers(15, 60)
    similarity = rng.integers(0, 5, size=(num_queries, num_images))
    parts = [np.split(rng.permutation(num_images), np.sort(rng.integers(0, num_images, 2))) for _ in range(num_queries)]
    right = [part[0] if rng.random() > 0.2 else part[0][:0] for part in parts]
    junk = [part[1] if rng.random() > 0.3 else part[1][:0] for part in parts]
    return np.argsort(-similarity, axis=1, kind="stable"), Relevance(right, junk)


def sets(relevance: Relevance) -> list[tuple[set[int], set[int]]]:
    return [(set(r.tolist()), set(j.tolist())) for r, j in zip(relevance.relevant, relevance.junk, strict=True)]


@pytest.mark.parametrize("seed", range(30))
def test_metrics__of_whole_rankings_are_those_of_the_formulas(seed: int) -> None:
    ranking, relevance = random_case(seed)
    ranked = judge(ranking, relevance, ranking.shape[1])
    cases = [(row.tolist(), *pair) for row, pair in zip(ranking, sets(relevance), strict=True)]
    areas, precisions = zip(*(slow_revisited(*case) for case in cases), strict=True)
    np.testing.assert_allclose(trapezoidal_average_precision(*ranked), areas, atol=1e-12)
    np.testing.assert_allclose(precision_at(*ranked, COUNTS), precisions, atol=1e-12)
    found = [average_precision(*ranked), average_precision_at_r(*ranked), r_precision(*ranked)]
    wanted = np.array([slow_metric_learning(*case) for case in cases])
    np.testing.assert_allclose(np.column_stack([*found, recall_at(*ranked, COUNTS)]), wanted, atol=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_metrics__of_the_nearest_are_those_of_whole_rankings(seed: int) -> None:
    """All but average precision, which needs the ranks of all right images."""
    ranking, relevance = random_case(100 + seed)
    whole = judge(ranking, relevance, ranking.shape[1])
    most_junk = max(len(junk) for junk in relevance.junk)
    depth = max(*COUNTS, int(relevance.num_relevant.max())) + most_junk
    part = judge(ranking[:, :depth], relevance, ranking.shape[1])
    for metric in (average_precision_at_r, r_precision):
        np.testing.assert_allclose(metric(*part), metric(*whole), atol=1e-12)
    for metric_at in (recall_at, precision_at):
        np.testing.assert_array_equal(metric_at(*part, COUNTS), metric_at(*whole, COUNTS))


def test_metrics__are_one_for_a_perfect_ranking_and_bounded_for_any() -> None:
    perfect = Ranked(hits("+++...", "+....."), np.array([3, 1]))
    rng = np.random.default_rng(0)
    random = Ranked(rng.random((50, 20)) < 0.3, np.full(50, 20))
    for metric in (average_precision, average_precision_at_r, r_precision, trapezoidal_average_precision):
        assert metric(*perfect).tolist() == [1, 1]
        assert ((metric(*random) >= 0) & (metric(*random) < 1)).all()
