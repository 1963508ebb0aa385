"""How far one set of vectors is from another, and what is too far."""

from typing import Any

import numpy as np
import pytest

from mcbeit.model_folder import Comparison
from mcbeit.parity import Numbers, compare, compute_all, cosine, failures, measure, recall
from mcbeit.speed import measure_speed


def numbers(count: int = 50, seed: int = 0) -> Numbers:
    rng = np.random.default_rng(seed)
    return Numbers(
        rng.standard_normal((count, 16)).astype(np.float32), rng.standard_normal((count, 2, 2, 8)).astype(np.float32)
    )


def test_cosine__of_zeros_is_one_only_if_both_are() -> None:
    found = cosine(np.array([[0.0, 0], [1, 0], [1, 1]]), np.array([[0.0, 0], [0, 1], [2, 2]]))
    assert found.tolist() == pytest.approx([1, 0, 1])
    assert cosine(np.array([[0.0, 0], [np.nan, 1]]), np.array([[1.0, 0], [0, 1]])).tolist() == [-1, -1]


def test_compare__of_the_same_is_perfect() -> None:
    found = compare(numbers(), numbers(), 8)
    assert (found.num_images, found.recall_at_10) == (50, 1.0)
    assert found.min_cosine == pytest.approx(1)
    assert found.max_difference == 0


def test_compare__sees_one_bad_image_and_one_bad_patch() -> None:
    wanted, found = numbers(), numbers()
    found.embeddings[7] *= -1
    found.patches[3, 1, 0] = 0
    one = compare(wanted, found, 1)
    assert one.min_cosine == pytest.approx(-1)
    assert one.mean_cosine == pytest.approx(0.96)
    assert one.min_patch_cosine == -1
    found.embeddings[0] = np.nan
    assert compare(wanted, found, 1).max_difference == np.inf
    assert one.recall_at_10 is not None
    assert one.recall_at_10 < 1


def test_recall__is_the_share_of_neighbours_that_stay() -> None:
    vectors = numbers(60).embeddings
    assert recall(vectors, vectors * 3) == 1
    assert recall(vectors, numbers(60, seed=1).embeddings) < 0.4
    assert compare(numbers(20), numbers(20), 1).recall_at_10 is None  # too few to say


def test_measure__is_at_every_batch_size() -> None:
    wanted = numbers(10)
    sizes: list[int] = []

    def compute(pixels: np.ndarray) -> Numbers:
        sizes.append(len(pixels))
        return Numbers(wanted.embeddings[pixels], wanted.patches[pixels])

    pixels = np.arange(10)
    assert [one.batch_size for one in measure(wanted, compute, pixels)] == [1, 3, 8]
    assert sizes == [1] * 10 + [3, 3, 3, 1] + [8, 2]
    assert np.array_equal(compute_all(compute, pixels, 4).embeddings, wanted.embeddings)


def comparison(**changes: Any) -> Comparison:
    values = {"batch_size": 3, "num_images": 64, "min_cosine": 1.0, "mean_cosine": 1.0, "min_patch_cosine": 1.0}
    return Comparison(**{**values, "max_difference": 0.0, "recall_at_10": 1.0, **changes})


def test_failures__are_by_precision() -> None:
    near = comparison(min_cosine=0.99995)
    assert failures([near], "int8") == failures([near], "fp16") == []
    assert failures([near], "fp32") == ["minimum cosine 0.999950 at batch size 3, at least 0.99999 is wanted"]
    assert failures([comparison(min_cosine=0.9995)], "int8") == []
    assert len(failures([comparison(min_cosine=0.9995)] * 2, "fp16")) == 2
    lost = comparison(recall_at_10=0.96)
    assert failures([lost], "fp16") == []
    assert failures([lost], "int8") == [
        "0.960 of the ten nearest neighbours stay at batch size 3, at least 0.97 is wanted"
    ]
    assert failures([comparison(recall_at_10=None)], "int8") == []


def test_measure_speed__has_every_way_at_every_batch_size() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda batch, name=name: calls.append((name, len(batch))) for name in ("one", "other")}
    found = measure_speed(ways, np.zeros((9, 2)), seconds=0.01)
    assert [(speed.runtime, speed.batch_size) for speed in found] == [
        ("one", 1),
        ("other", 1),
        ("one", 8),
        ("other", 8),
    ]
    assert calls[:4] == [("one", 1), ("other", 1)] * 2  # in turn
    assert all(speed.images_per_second > 0 for speed in found)
