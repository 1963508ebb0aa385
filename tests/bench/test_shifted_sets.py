"""Other images of known classes, in the layouts in which they are distributed; another layout is one error."""

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from shifted import COLOURS, WNIDS, write_classes, write_corruptions

from mcbeit.bench.data import BenchData, forget_opened
from mcbeit.bench.shifted_sets import IMAGENET_C, WHOLE, class_numbers, open_part, open_shifted
from mcbeit.errors import DataError


def test_folders_of_classes(tmp_path: Path) -> None:
    found = open_shifted(str(write_classes(tmp_path, {WNIDS[2]: COLOURS[2], WNIDS[0]: COLOURS[0]})))
    assert (found.layout, found.parts) == ("classes", (WHOLE,))
    assert len(open_part(str(tmp_path), WHOLE)) == 6
    np.testing.assert_array_equal(class_numbers("a", found, WNIDS), [0, 2])


def test_folders_of_numbers_are_sorted_as_text_and_mean_their_values(tmp_path: Path) -> None:
    found = open_shifted(str(write_classes(tmp_path, {str(i): COLOURS[0] for i in (0, 2, 10, 11)}, count=1)))
    assert found.layout == "numbers"
    classes = [f"n{i:08}" for i in range(12)]
    np.testing.assert_array_equal(class_numbers("v2", found, classes), [0, 10, 11, 2])
    with pytest.raises(DataError, match=r"2 of 4 folders of 'v2' .* such as '10'; .* or numbers from 0 to 9"):
        class_numbers("v2", found, classes[:10])


def test_numbers_that_are_names_of_classes_mean_these(tmp_path: Path) -> None:
    found = open_shifted(str(write_classes(tmp_path, {"1": COLOURS[0], "3": COLOURS[1]}, count=1)))
    np.testing.assert_array_equal(class_numbers("a", found, ["3", "1", "0"]), [1, 0])


def test_corruptions_and_severities(tmp_path: Path) -> None:
    found = open_shifted(str(write_corruptions(tmp_path, ["fog", "snow"], severities=[1, 5])))
    assert (found.layout, found.parts) == ("corruptions", ("fog/1", "fog/5", "snow/1", "snow/5"))
    np.testing.assert_array_equal(class_numbers("c", found, WNIDS), [0, 1, 2, 3])
    assert open_part(str(tmp_path), "snow/5").name(1).endswith(f"snow/5/{WNIDS[1]}/ILSVRC2012_val_00000002.JPEG")


def test_there_are_fifteen_corruptions_of_imagenet_c() -> None:
    assert len(set(IMAGENET_C)) == 15


def test_classes_of_imagenet_a_and_r_are_found_in_those_of_imagenet(tmp_path: Path) -> None:
    """By the lists of timm: WordNet ids in the order of ImageNet, and their numbers."""
    folder = files("timm") / "data" / "_info"
    imagenet = (folder / "imagenet_synsets.txt").read_text().split()
    for name in ("imagenet_a", "imagenet_r"):
        wnids = (folder / f"{name}_synsets.txt").read_text().split()
        found = open_shifted(str(write_classes(tmp_path / name, dict.fromkeys(wnids, COLOURS[0]), count=1)))
        numbers = (folder / f"{name}_indices.txt").read_text().split()
        np.testing.assert_array_equal(class_numbers(name, found, imagenet), np.array(numbers, int))
        assert len(numbers) == 200


def test_a_limit_draws_the_same_images_of_every_corruption(tmp_path: Path) -> None:
    place = str(write_corruptions(tmp_path / "c", ["fog", "snow"], severities=[1]))
    forget_opened()
    data = BenchData("c", place, limit=2, seed=1, kind="shifted")
    first, second = (data.open(part) for part in data.shifted().parts)
    assert len(first) == 2
    assert [first.name(i).rpartition("/")[2] for i in range(2)] == [second.name(i).rpartition("/")[2] for i in range(2)]


def test_a_worker_that_needs_a_part_does_not_look_at_the_others(tmp_path: Path) -> None:
    write_corruptions(tmp_path, ["fog", "snow"], severities=[1, 2])
    shutil.rmtree(tmp_path / "fog")
    (tmp_path / "fog").mkdir()
    forget_opened()
    assert len(BenchData("c", str(tmp_path), kind="shifted").open("snow/2")) == 4


def wrong(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_shifted(str(path))
    return str(error.value)


def test_another_layout_is_told_with_what_was_expected_and_found(tmp_path: Path) -> None:
    expected = "CLASS/IMAGE, of classes of the training images (ImageNet-A, -R); NUMBER/IMAGE"
    assert f"'{tmp_path / 'away'}' is not there; expected a folder with {expected}" in wrong(tmp_path / "away")
    (tmp_path / "a.tar").write_bytes(b"")
    assert "is a file; expected a folder" in wrong(tmp_path / "a.tar")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(b"")
    assert wrong(tmp_path / "flat").endswith("severities 1 to 5 (ImageNet-C): found a.jpg")
    write_corruptions(tmp_path / "tars" / "weather", ["fog"], severities=[1])  # one folder too deep
    assert wrong(tmp_path / "tars").endswith(": found weather; in 'weather' found fog")
    assert expected in wrong(tmp_path / "tars")


def test_corruptions_that_are_incomplete_are_told(tmp_path: Path) -> None:
    write_corruptions(tmp_path, ["fog", "snow"], severities=[1, 2])
    next((tmp_path / "snow" / "1").rglob("*.JPEG")).unlink()
    assert "other images in 'snow/1' (3) than in 'fog/1' (4); are all corruptions complete?" in wrong(tmp_path)
    shutil.rmtree(tmp_path / "snow")
    (tmp_path / "snow" / "high").mkdir(parents=True)
    assert "'snow' has no folders 1 to 5 of severities: found high" in wrong(tmp_path)
