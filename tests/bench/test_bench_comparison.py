"""Two results side by side: the difference, and what chance alone would do."""

import math
from pathlib import Path

import numpy as np
import pytest
from measured import made_up

from mcbeit.bench.comparison import compare_results, difference
from mcbeit.bench.manifest import Used
from mcbeit.bench.result import write_result
from mcbeit.errors import BenchError

RIGHT = np.arange(100) < 80
BETTER = np.arange(100) < 90
SHIFTED = np.roll(RIGHT, 1)  # one lost, one won


def test_only_images_that_differ_make_the_uncertainty() -> None:
    found = difference(made_up(RIGHT), made_up(BETTER))
    assert found.value == pytest.approx(0.1)
    assert (found.num_only_first, found.num_only_second) == (0, 10)
    assert found.half == pytest.approx(1.959964 * math.sqrt((10 - 100 / 100) / 100**2))
    assert found.verdict == "different"


def test_as_many_lost_as_won_is_within_noise() -> None:
    found = difference(made_up(RIGHT), made_up(SHIFTED))
    assert (found.value, found.num_only_first, found.num_only_second) == (0, 1, 1)
    assert found.verdict == "within noise"


def test_the_same_answers_are_called_so() -> None:
    assert difference(made_up(RIGHT), made_up(RIGHT)).verdict == "the same answers"


def test_without_answers_the_standard_errors_count() -> None:
    first, second = (made_up(one).model_copy(update={"answers": None}) for one in (RIGHT, BETTER))
    found = difference(first, second)
    assert found.half == pytest.approx(1.959964 * math.sqrt(0.8 * 0.2 / 100 + 0.9 * 0.1 / 100))
    assert found.num_only_first is None


def test_answers_to_other_images_are_no_pairs() -> None:
    other = made_up(BETTER)
    used = Used(num_used=100, num_unreadable=1, unreadable=("red/3.png",))
    split = other.data.splits["val"].model_copy(update={"used": used})
    other = other.model_copy(update={"data": other.data.model_copy(update={"splits": {"val": split}})})
    assert difference(made_up(RIGHT), other).num_only_second is None


@pytest.mark.parametrize("other", [{"preset": "smoke"}, {"limit": 50}, {"protocol": {"k": [5]}}, {"name": "logreg"}])
def test_other_questions_are_not_compared(other: dict[str, object]) -> None:
    with pytest.raises(BenchError, match="only numbers of the same protocol on the same images"):
        difference(made_up(RIGHT), made_up(RIGHT, **other))


def test_folders_are_compared_pair_by_pair(tmp_path: Path) -> None:
    for name, answers in (("one", RIGHT), ("other", BETTER)):
        write_result(tmp_path / name / "results", made_up(answers, source=name))
    header, row = compare_results(tmp_path / "one", tmp_path / "other")
    assert header[0] == "task, images: model"
    assert row[0] == "knn, colours: one [the fake encoder] → other [the fake encoder]"
    assert row[1:] == ["80.00", "90.00", "+10.00", "5.88", "0 lost, 10 won", "different"]


def test_folders_without_a_common_question_say_what_they_have(tmp_path: Path) -> None:
    write_result(tmp_path / "one" / "results", made_up(RIGHT))
    write_result(tmp_path / "other" / "results", made_up(RIGHT, name="logreg"))
    with pytest.raises(BenchError, match="they have knn on colours, logreg on colours"):
        compare_results(tmp_path / "one", tmp_path / "other")
