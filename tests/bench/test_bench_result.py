"""Results: numbers with honest intervals, files that are checked, names that tell what was measured."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from measured import made_up

from mcbeit.bench.result import (
    Answers,
    accuracy,
    by_class,
    confusion_counts,
    mean_of,
    read_result,
    read_results,
    write_result,
)
from mcbeit.errors import BenchError

HALF = np.arange(10) < 8  # eight of ten


def test_an_accuracy_has_wilsons_interval() -> None:
    found = accuracy(HALF)
    assert found.value == pytest.approx(0.8)
    assert found.standard_error == pytest.approx(math.sqrt(0.8 * 0.2 / 10))
    assert found.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson (1927) for 8 of 10
    assert accuracy(np.ones(10, bool)).interval == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_a_mean_over_queries_is_bootstrapped_and_leaves_out_those_without_a_value() -> None:
    values = np.array([0.2, 0.4, 0.6, 0.8, math.nan] * 20)
    found = mean_of(values, seed=0)
    assert found.value == pytest.approx(0.5)
    assert found.num_samples == 80
    assert found.standard_error == pytest.approx(values[np.isfinite(values)].std() / math.sqrt(80), rel=0.15)
    assert found == mean_of(values, seed=0)
    with pytest.raises(BenchError, match="nothing to measure"):
        mean_of(np.array([math.nan]), seed=0)


def test_accuracies_by_class_say_where_there_is_no_image() -> None:
    assert by_class(np.array([True, False, True]), np.array([0, 0, 2]), 3) == (0.5, None, 1.0)


def test_confusion_has_a_row_per_true_class() -> None:
    assert confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2) == ((1, 1), (0, 1))


def test_answers_come_back_as_they_were() -> None:
    right = np.random.default_rng(0).random(37) < 0.5
    assert (Answers.of("top1", right).unpack() == right).all()


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = made_up(HALF)
    path = write_result(tmp_path / "results", result)
    assert path.stem == result.run_id
    assert read_result(path) == result
    assert read_results(tmp_path) == [result]


def test_its_name_changes_with_task_model_and_images() -> None:
    names = {made_up(HALF).run_id, made_up(HALF, limit=10).run_id, made_up(HALF, version=2).run_id}
    names |= {made_up(HALF, names="2" * 64).run_id, made_up(HALF, protocol={"k": [5]}).run_id}
    assert len(names) == 5
    assert made_up(~HALF).run_id == made_up(HALF).run_id  # of the same question: numbers are no part of it


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"primary": 3}, "primary"),
        ({"schema_version": 2}, "schema_version"),
        ({"metrics": {}}, "metrics"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**made_up(HALF).model_dump(mode="json"), **change}))
    with pytest.raises(BenchError, match=rf"other.json' is no result of mcbeit bench: {told}"):
        read_result(path)


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = write_result(tmp_path / "results", made_up(HALF))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BenchError, match=r"is no result of .*: it is no JSON: .*; remove it, and measure again"):
        read_result(path)


def test_a_folder_without_results_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results; make some: mcbeit bench run"):
        read_results(tmp_path)


def test_a_disk_that_takes_nothing_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(BenchError, match="cannot be written"):
        write_result(tmp_path / "results", made_up(HALF))
