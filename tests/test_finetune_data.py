"""Labelled images: from one folder or two, a share of the labels, some held out; and what does not fit refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards import write_parquet
from tiny import write_shapes

from mcbeit.config import validate
from mcbeit.data import DataConfig
from mcbeit.errors import ConfigError, DataError, RunError
from mcbeit.finetune_data import FinetuneImages, JudgeConfig, check_classes, divide, draw, open_both
from mcbeit.sources import ImageSource, SubsetSource, open_source


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 24 images and `val/` with 10, of two classes."""
    folder = tmp_path_factory.mktemp("both")
    write_shapes(folder / "train")
    write_shapes(folder / "val", count=10, seed=1)
    return folder


def opened(folder: Path) -> ImageSource:
    return open_source(str(folder), "imagefolder")


def divided(folder: Path, **options: Any) -> FinetuneImages:
    return divide(opened(folder / "train"), opened(folder / "val"), **options)


def names(source: ImageSource) -> set[str]:
    return {source.name(i) for i in range(len(source))}


# open_both


def test_open_both__one_folder_with_the_layout_of_imagenet(both: Path) -> None:
    train, test = open_both(DataConfig(source=str(both)), JudgeConfig())
    assert (len(train), len(test)) == (24, 10)
    assert train.classes == test.classes == ["disc", "square"]


def test_open_both__two_folders_are_imagefolders(both: Path) -> None:
    train, test = open_both(DataConfig(source=str(both / "train")), JudgeConfig(source=str(both / "val")))
    assert (len(train), len(test)) == (24, 10)
    assert train.labels is not None
    assert test.labels is not None


def test_open_both__says_what_is_not_set(both: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source is not set"):
        open_both(DataConfig(), JudgeConfig())
    with pytest.raises(DataError, match=r"is training images alone, name the test images: eval\.source"):
        open_both(DataConfig(source=str(both / "train")), JudgeConfig())
    for values in ({"source": [str(both / "train")]}, {"source": str(both / "train"), "kind": "imagefolder"}):
        with pytest.raises(DataError, match=r"eval\.source is not set; name the test images"):
            open_both(validate(DataConfig, values), JudgeConfig())


# divide


def test_divide__all_of_it(both: Path) -> None:
    images = divided(both)
    assert (len(images.train), len(images.test.source), images.held_out) == (24, 10, None)
    assert images.num_classes == 2
    assert images.labels.tolist() == [0] * 12 + [1] * 12
    assert images.test.labels.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(("fraction", "per_class"), [(0.5, 6), (0.26, 3), (0.01, 1)])
def test_divide__takes_a_share_of_each_class_and_at_least_one(both: Path, fraction: float, per_class: int) -> None:
    images = divided(both, label_fraction=fraction)
    assert np.bincount(images.labels).tolist() == [per_class, per_class]
    assert len(images.test.source) == 10
    assert names(images.train) <= names(divided(both, label_fraction=0.75).train)
    assert images.train.summary() == divided(both, label_fraction=fraction).train.summary()
    assert images.train.summary() != divided(both, label_fraction=fraction, seed=1).train.summary()


def test_divide__holds_out_some_of_what_is_used(both: Path) -> None:
    images = divided(both, label_fraction=0.5, held_out=0.3)
    assert images.held_out is not None
    assert np.bincount(images.labels).tolist() == [4, 4]
    assert np.bincount(images.held_out.labels).tolist() == [2, 2]
    used, left_out = names(images.train), names(images.held_out.source)
    assert used.isdisjoint(left_out)
    assert used | left_out == names(divided(both, label_fraction=0.5).train)
    for source, labels in ((images.train, images.labels), images.held_out):
        assert [Path(source.name(i)).parent.name for i in range(len(source))] == [
            ["disc", "square"][label] for label in labels
        ]


def test_divide__leaves_an_image_of_each_class_to_learn_from(both: Path) -> None:
    images = divided(both, label_fraction=0.16, held_out=0.9)
    assert np.bincount(images.labels).tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"eval\.held_out=0\.1 leaves out none of the 2 training images, as each"):
        divided(both, label_fraction=0.01, held_out=0.1)


def test_divide__numbers_the_test_images_as_the_training(both: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "val", count=6)
    (tmp_path / "val" / "disc").rename(tmp_path / "val" / "gone")
    (tmp_path / "val" / "gone").rename(tmp_path / "gone")
    images = divide(opened(both / "train"), opened(tmp_path / "val"))
    assert images.test.labels.tolist() == [1, 1, 1]  # of the test images alone, a square would be 0


def test_divide__refuses_what_does_not_fit(both: Path, tmp_path: Path) -> None:
    labelled, plain = opened(both / "train"), open_source(str(both / "train"), "folder")
    with pytest.raises(DataError, match=r"needs labels, but images such as '.*' have none; .* as data\.source"):
        divide(plain, labelled)
    with pytest.raises(DataError, match=r"labelled shards as eval\.source"):
        divide(labelled, plain)
    write_shapes(tmp_path / "val", count=4)
    (tmp_path / "val" / "disc").rename(tmp_path / "val" / "ring")
    with pytest.raises(DataError, match="1 classes of the test images have no training image, such as 'ring'"):
        divide(labelled, opened(tmp_path / "val"))
    (tmp_path / "one").mkdir()
    (tmp_path / "val" / "square").rename(tmp_path / "one" / "square")
    with pytest.raises(DataError, match=r"needs at least 2 classes, but data\.source has only 'square'"):
        divide(opened(tmp_path / "one"), labelled)


def test_draw__gives_the_quota_of_each_class_and_more_with_a_larger_one() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    counts = np.bincount(labels)
    small = draw(labels, np.array([1, 2, 3, 0, 400]), seed=4)
    assert np.bincount(labels[small], minlength=5).tolist() == [1, 2, 3, 0, counts[4]]
    assert (np.diff(small) > 0).all()
    assert set(small[labels[small] < 3]) <= set(draw(labels, np.array([5, 5, 5, 0, 0]), seed=4))


# check_classes


def test_check_classes__keeps_them_and_notices_a_change(both: Path, tmp_path: Path) -> None:
    images = divided(both)
    check_classes(tmp_path, images, goes_on=False)
    assert json.loads((tmp_path / "classes.json").read_text())["classes"] == ["disc", "square"]
    check_classes(tmp_path, images, goes_on=True)
    swapped = SubsetSource(images.train, np.arange(24))
    swapped.classes = ["square", "disc"]
    with pytest.raises(RunError, match=r"the labels of the run '.*' have changed: its head is for the 2 classes of"):
        check_classes(tmp_path, images._replace(train=swapped), goes_on=True)


def test_divide__shards_number_their_classes_by_themselves(tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(write_shapes(tmp_path / "images", count=6).rglob("*.png"))]
    source = open_source(str(write_parquet(tmp_path / "train.parquet", pictures, labels=[0, 0, 0, 2, 2, 2])))
    images = divide(source, source, label_fraction=0.4)
    assert images.num_classes == 3
    assert images.labels.tolist() == [0, 2]
