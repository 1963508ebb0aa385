"""Tables of corruptions: means over severities, then over corruptions, of the images that all of them have."""

import numpy as np
import pytest

from mcbeit.bench.result import ratio_of
from mcbeit.bench.shift_scores import Judged, judge_table, severity_curves
from mcbeit.errors import BenchError


def judged(*right: int, images: tuple[int, ...] = (0, 1, 2, 3)) -> Judged:
    return Judged(np.array(images), np.array(right, bool))


CELLS = {
    ("fog", 1): judged(1, 1, 1, 0),
    ("fog", 3): judged(1, 0, 0, 0),
    ("noise", 1): judged(1, 1, 1, 1),
    ("noise", 3): judged(1, 1, 0, 0),
}
CLEAN = judged(1, 1, 1, 0)


def test_means_and_what_they_are_relative_to() -> None:
    table = judge_table("Corruptions", "top1", CELLS, seed=0, clean=CLEAN)
    found = {name: metric.value for name, metric in table.metrics.items()}
    assert found == {
        "top1, fog, severity 1": 0.75, "top1, fog, severity 3": 0.25, "top1, fog": 0.5,
        "top1, noise, severity 1": 1.0, "top1, noise, severity 3": 0.5, "top1, noise": 0.75,
        "top1, severity 1": 0.875, "top1, severity 3": 0.375, "top1": 0.625,
        "relative top1, fog": pytest.approx(2 / 3), "relative top1, noise": 1.0,
        "relative top1": pytest.approx(2.5 / 3),
    }  # fmt: skip
    np.testing.assert_allclose(table.shares, [1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(table.images, [0, 1, 2, 3])


def test_a_grid_names_the_metrics() -> None:
    grid = judge_table("Corruptions", "top1", CELLS, seed=0, clean=CLEAN).grid
    assert grid.rows == ("fog", "noise", "mean")
    assert grid.columns == ("mean", "relative", "severity 1", "severity 3")
    assert grid.metrics[1] == (
        "top1, noise", "relative top1, noise", "top1, noise, severity 1", "top1, noise, severity 3",
    )  # fmt: skip
    assert grid.metrics[2] == ("top1", "relative top1", "top1, severity 1", "top1, severity 3")


def test_without_clean_images_nothing_is_relative() -> None:
    table = judge_table("C", "top1, c", CELLS, seed=0)
    assert not [name for name in table.metrics if name.startswith("relative")]
    assert table.grid.columns == ("mean", "severity 1", "severity 3")


def test_corruptions_that_are_not_counted_stand_in_the_table_alone() -> None:
    table = judge_table("C", "top1", CELLS, seed=0, counted=["noise"])
    assert table.metrics["top1"].value == 0.75
    assert table.metrics["top1, severity 3"].value == 0.5
    assert table.metrics["top1, fog"].value == 0.5


def test_a_cell_that_is_missing_is_empty() -> None:
    table = judge_table("C", "top1", {cell: one for cell, one in CELLS.items() if cell != ("fog", 3)}, seed=0)
    assert table.grid.metrics[0] == ("top1, fog", "top1, fog, severity 1", None)
    assert table.metrics["top1"].value == 0.75


def test_means_are_of_the_images_that_all_cells_have() -> None:
    cells = {("fog", 1): judged(1, 0, 0, images=(0, 1, 3)), ("fog", 2): judged(0, 1, 1, 1)}
    table = judge_table("C", "top1", cells, seed=0, clean=CLEAN)
    np.testing.assert_array_equal(table.images, [0, 1, 3])
    assert table.metrics["top1"].value == pytest.approx(0.5)
    assert table.metrics["relative top1"].value == pytest.approx(1.5 / 2)
    assert table.metrics["top1, fog, severity 2"].num_samples == 4


def test_without_such_images_it_is_one_error() -> None:
    cells = {("fog", 1): judged(1, images=(0,)), ("fog", 2): judged(0, images=(1,))}
    with pytest.raises(BenchError, match="no image that can be read in every corruption"):
        judge_table("C", "top1", cells, seed=0)


def test_versions_of_an_image_are_drawn_together() -> None:
    """Ten times the same answers are no more evidence than one time."""
    right = np.random.default_rng(0).random(400) < 0.7
    images = np.arange(400)
    one = judge_table("C", "top1", {("fog", 1): Judged(images, right)}, seed=0)
    ten = judge_table("C", "top1", {(f"fog{i}", 1): Judged(images, right) for i in range(10)}, seed=0)
    assert ten.metrics["top1"].standard_error == pytest.approx(one.metrics["top1"].standard_error)
    assert one.metrics["top1"].standard_error == pytest.approx(np.sqrt(0.7 * 0.3 / 400), rel=0.1)


def test_ratio_of__of_the_same_answers_is_certain() -> None:
    right = (np.arange(50) < 40).astype(float)
    found = ratio_of(right, right, seed=0)
    assert found is not None
    assert (found.value, found.interval, found.standard_error) == (1.0, (1.0, 1.0), 0.0)
    assert ratio_of(right, np.zeros(50), seed=0) is None


def test_curves_begin_with_clean_images() -> None:
    (curve,) = severity_curves(CELLS, CLEAN, {"weather": ["fog"]})
    assert (curve.title, curve.x, curve.lines) == ("weather", (0.0, 1.0, 3.0), {"fog": (0.75, 0.75, 0.25)})
