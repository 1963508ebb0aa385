"""ReaL: an answer is right if it is one of the classes that people see; images in which they see none do not count."""

from pathlib import Path

import numpy as np
import pytest
from shifted import write_real

from mcbeit.bench.real_labels import TIMM, read_real_labels
from mcbeit.errors import DataError


def names(*numbers: int) -> list[str]:
    return [f"/data/val/n01440764/ILSVRC2012_val_{number:08}.JPEG" for number in numbers]


def test_images_are_known_by_their_names(tmp_path: Path) -> None:
    real = read_real_labels(str(write_real(tmp_path / "real.json", [[0], [1, 2], [], [3]])))
    found = real.judge(names(4, 3, 2, 1), np.array([3, 0, 2, 1]))
    np.testing.assert_array_equal(found, [True, True, False])  # of image 4, 2 and 1


def test_the_labels_that_timm_has_are_those_of_the_publication() -> None:
    real = read_real_labels(TIMM)
    assert len(real.labels) == 50_000
    assert sum(map(bool, real.labels)) == 46_837
    numbers = [number for number, labels in enumerate(real.labels, start=1) if labels]
    real.check(names(*numbers, 50_000), np.array([*(real.labels[number - 1][0] for number in numbers), 0]), 1000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON file"),
        ('{"a": 1}', "is no list but dict"),
        ("[[1], 2]", "lists 2"),
        ("[[1.5]]", r"lists \[1\.5\]"),
    ],
)
def test_another_file_is_one_error(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "real.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"{told}.*expected a list with a list of class numbers per validation image"):
        read_real_labels(str(path))


def test_no_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_real_labels(str(tmp_path / "real.json"))


@pytest.mark.parametrize(
    ("name", "num_classes", "told"),
    [
        ("val/dog/1.jpg", 5, "for the validation images ILSVRC2012_val_00000001 to ILSVRC2012_val_00000002, and 'val/"),
        (names(3)[0], 5, r"and '.*00000003\.JPEG' is none of them"),
        (names(1)[0], 3, "names class 4, and the images have 3 classes, 0 to 2"),
    ],
)
def test_other_images_or_classes_are_one_error(tmp_path: Path, name: str, num_classes: int, told: str) -> None:
    real = read_real_labels(str(write_real(tmp_path / "real.json", [[0], [4]])))
    with pytest.raises(DataError, match=told):
        real.check([*names(2), name], np.array([4, 0]), num_classes)


def test_classes_in_another_order_are_one_error(tmp_path: Path) -> None:
    """As folders called 0 to 999 are, which stand in the order of text."""
    real = read_real_labels(str(write_real(tmp_path / "real.json", [[0], [1, 2], [], [3], [4]])))
    real.check(names(1, 2, 3, 4, 5), np.array([1, 2, 0, 3, 1]), 5)  # two of four
    with pytest.raises(DataError, match="of 4 images only 1 show their own; ReaL numbers classes in the order of"):
        real.check(names(1, 2, 3, 4, 5), np.array([1, 2, 3, 0, 1]), 5)


def test_images_without_any_label_are_one_error(tmp_path: Path) -> None:
    real = read_real_labels(str(write_real(tmp_path / "real.json", [[0], []])))
    with pytest.raises(DataError, match="has labels for none of 1 images; use more of them"):
        real.judge(names(2), np.array([0]))
