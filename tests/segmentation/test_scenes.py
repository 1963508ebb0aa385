"""Scenes on the disk: both layouts, and the errors of wrong ones."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import CLASSES, write_ade20k

from mcbeit.errors import DataError
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.scenes import open_scenes


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    return write_ade20k(tmp_path / "ade")


def write_folders(root: Path) -> Path:
    for split in ("train", "val"):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            (root / kind / split / "kitchen").mkdir(parents=True)
            size = (8, 6)
            image = Image.new("RGB" if kind == "images" else "L", size, 1 if kind == "masks" else (9, 9, 9))
            image.save(root / kind / split / "kitchen" / f"one.{suffix}")
    (root / "classes.txt").write_text("floor\nwall\n\n")
    return root


def test_open_scenes__of_ade20k(ade20k: Path) -> None:
    scenes = open_scenes(ade20k)
    assert scenes.layout == "ade20k"
    assert (len(scenes.train), len(scenes.val), scenes.train.num_classes) == (8, 3, 3)
    assert tuple(scenes.val.classes) == CLASSES
    assert scenes.val.name(0).endswith("images/validation/ADE_val_00000001.jpg")
    labels = scenes.train.labels_of(0)
    assert labels.shape == (40, 48)
    assert set(np.unique(labels)) == {0, 1, 2, IGNORED}
    assert scenes.train.summary() != scenes.val.summary()


def test_open_scenes__of_a_users_own(tmp_path: Path) -> None:
    scenes = open_scenes(write_folders(tmp_path))
    assert scenes.layout == "folders"
    assert scenes.train.classes == ["floor", "wall"]
    assert set(np.unique(scenes.val.labels_of(0))) == {1}


def test_open_scenes__says_what_was_expected_and_found(tmp_path: Path, ade20k: Path) -> None:
    with pytest.raises(DataError, match=r"is not there; expected a folder with images/\{training,validation\}"):
        open_scenes(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is a file; expected"):
        open_scenes(ade20k / "objectInfo150.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is not laid out as images with label maps: it is empty; expected"):
        open_scenes(tmp_path / "empty")
    (ade20k / "images" / "validation").rename(ade20k / "images" / "test")
    with pytest.raises(DataError, match=r"has no folder validation or val: found test, training; expected"):
        open_scenes(ade20k)


def test_open_scenes__needs_a_list_of_classes(ade20k: Path) -> None:
    (ade20k / "objectInfo150.txt").rename(ade20k / "info.txt")
    with pytest.raises(DataError, match=r"has no list of classes: neither objectInfo150.txt .* nor classes.txt"):
        open_scenes(ade20k)
    (ade20k / "classes.txt").write_text("alone\n")
    with pytest.raises(DataError, match=r"classes.txt' names 1 classes; there must be 2 to 255"):
        open_scenes(ade20k)


def test_open_scenes__needs_classes_in_order(ade20k: Path) -> None:
    (ade20k / "objectInfo150.txt").write_text("Idx\tName\n2\twall\n1\tfloor\n")
    with pytest.raises(DataError, match=r"must number the classes from 1 .* it has 'Idx\tName' and 2, 1"):
        open_scenes(ade20k)


def test_open_scenes__refuses_lists_of_classes_that_are_none(ade20k: Path) -> None:
    (ade20k / "objectInfo150.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"objectInfo150.txt' names 0 classes; there must be 2 to 255"):
        open_scenes(ade20k)
    (ade20k / "objectInfo150.txt").write_bytes("Idx\tName\n1\tcaf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read as UTF-8 text"):
        open_scenes(ade20k)


def test_open_scenes__passes_over_hidden_files(ade20k: Path) -> None:
    for folder in ("images/training", "annotations/training"):
        (ade20k / folder / "._ADE_train_00000001.jpg").write_bytes(b"of a Mac")
        (ade20k / folder / "._ADE_train_00000001.png").write_bytes(b"of a Mac")
    assert len(open_scenes(ade20k).train) == 8


def test_open_scenes__names_an_image_without_label_map(ade20k: Path) -> None:
    (ade20k / "annotations" / "training" / "ADE_train_00000003.png").unlink()
    message = r"1 of the 8 images in .*training' have no label map .*'ADE_train_00000003.jpg', for which 'ADE_train_"
    with pytest.raises(DataError, match=message):
        open_scenes(ade20k)


def test_open_scenes__finds_label_maps_of_another_set_before_anything_is_trained(ade20k: Path) -> None:
    path = ade20k / "annotations" / "validation" / "ADE_val_00000002.png"
    Image.new("L", (48, 40), 7).save(path)
    with pytest.raises(
        DataError, match=r"ADE_val_00000002.jpg': its label map has the value 7, .*ADE_val_00000002.png"
    ):
        open_scenes(ade20k)
