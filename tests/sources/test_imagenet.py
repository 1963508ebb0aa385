import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import fsspec
import pytest
from imagenets import (
    DEVKIT_ORDER,
    TRAIN,
    VAL,
    WNIDS,
    below,
    devkit,
    samples,
    train_files,
    train_tar,
    val_bytes,
    val_files,
    write_files,
    write_folders,
    write_kaggle,
    write_lists,
    write_mixed,
    write_official,
    write_parquets,
    write_shard_folders,
    write_webdataset,
    write_zips,
)
from shards import cut, header_of, write_parquet, write_tar

from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, tar, tar_cache
from mcbeit.sources.imagenet import LayoutKind, Splits, open_splits
from mcbeit.sources.split_layouts import LAYOUTS as KNOWN

LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folders": (write_folders, "folders"),
    "folders, validation": (lambda root: write_folders(root, "validation"), "folders"),
    "folders, test": (lambda root: write_folders(root, "test"), "folders"),
    "official": (write_official, "official"),
    "mixed": (write_mixed, "official"),
    "kaggle": (write_kaggle, "kaggle"),
    "lists": (write_lists, "lists"),
    "zips": (write_zips, "lists"),
    "webdataset": (write_webdataset, "webdataset"),
    "shard folders": (write_shard_folders, "webdataset"),
    "parquet": (write_parquets, "parquet"),
    "parquet, flat": (lambda root: write_parquets(root, ""), "parquet"),
}


def classes_of(source: ImageSource) -> dict[bytes, int]:
    """What the images hold, and their labels."""
    assert source.labels is not None
    return {source.read(i): int(source.labels[i]) for i in range(len(source))}


def message(root: Path, kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        open_splits(root, kind=kind)
    return str(error.value)


TRAIN_CLASSES = {data: WNIDS.index(wnid) for wnid, images in TRAIN.items() for data in images}
VAL_CLASSES = {val_bytes(stem, wnid): WNIDS.index(wnid) for stem, wnid in VAL}


@pytest.mark.parametrize("name", LAYOUTS)
def test_open_splits__numbers_classes_by_sorted_wnid_in_every_layout(name: str, tmp_path: Path) -> None:
    write, layout = LAYOUTS[name]
    splits = open_splits(write(tmp_path / "images"))
    assert splits.layout == layout
    assert classes_of(splits.train) == TRAIN_CLASSES
    assert classes_of(splits.val) == VAL_CLASSES
    assert splits.train.classes == splits.val.classes
    if layout in ("folders", "official", "kaggle"):
        assert splits.train.classes == list(WNIDS)
    assert open_splits(str(tmp_path / "images"), kind=layout).layout == layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_open_splits__of_every_layout_can_be_sent_to_a_process(name: str, tmp_path: Path) -> None:
    train, val, _ = open_splits(LAYOUTS[name][0](tmp_path))
    train.read(0)
    packed = pickle.dumps((train, val))
    assert len(packed) < 8000
    found = pickle.loads(packed)
    assert (classes_of(found[0]), classes_of(found[1])) == (TRAIN_CLASSES, VAL_CLASSES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_open_splits__of_every_layout_is_known_again_by_its_names(name: str, tmp_path: Path) -> None:
    write = LAYOUTS[name][0]
    first = open_splits(write(tmp_path / "a"))
    again = open_splits(write(tmp_path / "b"))
    for one, other in zip(first[:2], again[:2], strict=True):
        assert one.summary() == other.summary()
        assert one.summary()["images"] == len(one)


@pytest.mark.parametrize("name", ["folders", "official", "mixed", "kaggle", "zips", "webdataset", "parquet"])
def test_open_splits__takes_a_url(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][0](tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/imagenet", recursive=True)
    try:
        splits = open_splits("memory://imagenet")
        assert classes_of(splits.train) == TRAIN_CLASSES
        assert classes_of(splits.val) == VAL_CLASSES
    finally:
        memory.rm("/imagenet", recursive=True)


def test_open_splits__every_layout_may_be_asked_for() -> None:
    assert get_args(LayoutKind) == ("auto", *KNOWN)


def test_open_splits__takes_images_of_any_classes(tmp_path: Path) -> None:
    """As `mcbeit data prepare fashion-mnist` makes them; `val` may lack a class."""
    files = {"train/10-bag/1.png": b"1", "train/9-boot/2.png": b"2", "val/9-boot/3.png": b"3", "README.md": b""}
    splits = open_splits(write_files(tmp_path, files))
    assert splits.train.classes == splits.val.classes == ["10-bag", "9-boot"]
    assert (classes_of(splits.train), classes_of(splits.val)) == ({b"1": 0, b"2": 1}, {b"3": 1})


def test_open_splits__takes_more_channels(tmp_path: Path) -> None:
    files = {"train/a/1.npy": b"1", "train/b/2.npy": b"2", "val/b/3.npy": b"3"}
    splits = open_splits(write_files(tmp_path, files), channels=5)
    assert (splits.train.channels, splits.val.channels) == (5, 5)
    assert classes_of(splits.val) == {b"3": 1}


def test_open_splits__expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path / "imagenet")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_splits("~/imagenet").layout == "folders"


def test_open_splits__takes_what_is_asked_for_of_several_layouts(tmp_path: Path) -> None:
    write_folders(write_parquets(write_official(tmp_path)))
    for kind in ("folders", "official", "parquet"):
        assert open_splits(tmp_path, kind=kind).layout == kind
    assert open_splits(tmp_path).layout == "folders"


def test_open_splits__the_devkit_is_not_needed_where_folders_tell_the_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", train_tar())
    write_files(tmp_path, below("val", val_files(by_class=True)))
    splits = open_splits(tmp_path)
    assert splits.layout == "official"
    assert (classes_of(splits.train), classes_of(splits.val)) == (TRAIN_CLASSES, VAL_CLASSES)


def test_open_splits__takes_kaggles_solution_beside_unpacked_tar_files(tmp_path: Path) -> None:
    write_kaggle(tmp_path / "kaggle")
    (tmp_path / "kaggle" / "ILSVRC/Data/CLS-LOC").rename(tmp_path / "images")
    (tmp_path / "kaggle" / "LOC_val_solution.csv").rename(tmp_path / "images" / "LOC_val_solution.csv")
    assert classes_of(open_splits(tmp_path / "images").val) == VAL_CLASSES


# ImageNet's own tar files


def test_open_splits__names_images_in_the_tar_files_by_their_class(tmp_path: Path) -> None:
    train, val, _ = open_splits(write_official(tmp_path))
    assert train.name(0) == f"{tmp_path}/ILSVRC2012_img_train.tar:{DEVKIT_ORDER[0]}/{DEVKIT_ORDER[0]}_0.JPEG"
    assert val.name(0) == f"{tmp_path}/ILSVRC2012_img_val.tar:{VAL[-1][0]}.JPEG"
    assert not train.damaged


def test_open_splits__keeps_the_index_of_the_tar_of_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_cache, "WORTH_KEEPING", 1)
    first = open_splits(write_official(tmp_path / "a")).train

    def refuse(*_: object) -> None:
        raise AssertionError("the headers are read again")

    monkeypatch.setattr(tar, "read_class_tars", refuse)
    again = open_splits(tmp_path / "a").train
    assert classes_of(again) == TRAIN_CLASSES
    assert again.summary() == first.summary()


def test_open_splits__uses_what_is_whole_of_a_truncated_tar_of_tars(tmp_path: Path) -> None:
    path = write_official(tmp_path) / "ILSVRC2012_img_train.tar"
    cut(path, header_of(path, f"{DEVKIT_ORDER[-1]}.tar") + 600)
    error = message(tmp_path)
    assert f"1 of 3 classes of val in '{tmp_path}' (official) are not in train, such as '{DEVKIT_ORDER[-1]}'" in error
    assert f"'{path}' is damaged: it ends at byte" in error


def test_open_splits__notes_a_damaged_tar_within_the_tar_of_tars(tmp_path: Path) -> None:
    members = train_tar()
    members[f"{WNIDS[1]}.tar"] = members[f"{WNIDS[1]}.tar"][:1100]  # the first image, and half a header
    write_tar(write_official(tmp_path) / "ILSVRC2012_img_train.tar", {**members, "notes.txt": b""})
    train = open_splits(tmp_path).train
    (damaged,) = train.damaged
    assert damaged.reason.startswith(f"in '{WNIDS[1]}.tar', ")
    assert len(train) == len(TRAIN_CLASSES) - 2
    assert classes_of(train).items() <= TRAIN_CLASSES.items()
    assert train.passed_over == {".txt": 1}


# what is missing or does not fit


def test_open_splits__shows_what_was_expected_and_found(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{i}/x.png": b"" for i in range(12)})
    error = message(tmp_path)
    assert f"'{tmp_path}' is not laid out as images to train and to test on: found 0, 1, 10, 11" in error
    assert "and 4 more" in error
    for part in (
        "folders: train/CLASS/IMAGE", "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv", "train_map.txt",
        "*val*.tar", "data/validation-*.parquet",
    ):  # fmt: skip
        assert part in error
    (tmp_path / "empty").mkdir()
    one = "it is empty; expected one of: lists: train_map.txt and val_map.txt with train/ and val/, or train.zip and"
    assert one in message(tmp_path / "empty", "lists")


def test_open_splits__of_no_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"x.tar": b""})
    assert message(tmp_path / "x.tar").endswith("x.tar' is a file: name the folder that holds it")
    assert message(tmp_path / "nothing").endswith("nothing' is not there")
    made = message(tmp_path / "fashion-mnist")
    assert made.endswith(f"is not there; make it: mcbeit data prepare fashion-mnist {tmp_path}/fashion-mnist")


KIT = "ILSVRC2012_devkit_t12"
TRUTH = f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt"
LACKING: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "val": (write_folders, "val", "folders per class for train, but no val or validation or test with any beside it"),
    "train": (write_folders, "train", "has folders per class for val, but no train with any beside it"),
    "devkit": (write_official, f"{KIT}.tar.gz", f"ILSVRC2012_img_val.tar' are in {KIT}.tar.gz, which is not in"),
    "val tar": (
        write_official,
        "ILSVRC2012_img_val.tar",
        "neither ILSVRC2012_img_val.tar nor a folder val with images",
    ),
    "train tar": (write_official, "ILSVRC2012_img_train.tar", "neither ILSVRC2012_img_train.tar nor a folder train"),
    "unpacked devkit": (write_mixed, KIT, f"have no folders per class, and neither {KIT}.tar.gz nor LOC_val_solution"),
    "solution": (write_kaggle, "LOC_val_solution.csv", "CLS-LOC/val' are in LOC_val_solution.csv, which is not in"),
    "kaggle val": (write_kaggle, "ILSVRC/Data/CLS-LOC/val", "nor a folder val with images"),
    "train list": (write_zips, "train_map.txt", "but no train_map.txt"),
    "val list": (write_zips, "val_map.txt", "but no val_map.txt"),
    "zip": (write_zips, "val.zip", "val_map.txt' does not match the files below"),
    "val shards": (write_webdataset, "imagenet1k-validation-00.tar", ".tar files of one split, but none called val or"),
    "train parquet": (write_parquets, "data/train-00000-of-00001.parquet", "of one split, but none called train"),
    "meta": (write_mixed, f"{KIT}/data/meta.mat", f"{KIT}' has no meta.mat; download it again"),
    "ground truth": (write_mixed, TRUTH, "has no ILSVRC2012_validation_ground_truth.txt; download it again"),
    "an image": (
        write_mixed,
        f"val/{VAL[1][0]}.JPEG",
        f"names the classes of 5 images, and there are 4 such as 'ROOT/val/{VAL[0][0]}.JPEG': '{VAL[1][0]}' is missing",
    ),
    "a listed image": (write_lists, f"val/{VAL[1][0]}.JPEG", "1 of 5 are missing, the first is"),
    "a class": (
        write_folders,
        f"train/{WNIDS[1]}",
        f"1 of 3 classes of val in 'ROOT' (folders) are not in train, such as '{WNIDS[1]}'; train has 2, such as",
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_open_splits__says_what_is_missing(name: str, tmp_path: Path) -> None:
    write, path, reason = LACKING[name]
    gone = write(tmp_path) / path
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert reason.replace("ROOT", str(tmp_path)) in message(tmp_path)


CSV = "LOC_val_solution.csv"
MISFITS: dict[str, tuple[Callable[[Path], Path], dict[str, bytes], str]] = {
    "one more image": (write_mixed, {"val/ILSVRC2012_val_00000009.JPEG": b""}, "of 5 images, and there are 6 such as"),
    "another image": (write_kaggle, {"ILSVRC/Data/CLS-LOC/val/x.JPEG": b""}, "'x' has no class; are both complete?"),
    "a class of nothing": (write_mixed, devkit([1, 2, 3, 3, 4]), "does not fit its meta.mat: there is no class 4"),
    "empty ground truth": (write_mixed, {TRUTH: b"\n"}, "meta.mat: it is empty"),
    "meta that is none": (write_mixed, {f"{KIT}/data/meta.mat": b"MATLAB 5.0"}, "meta.mat of the devkit"),
    "a page for a devkit": (write_official, {f"{KIT}.tar.gz": b"<!DOCTYPE html>"}, "cannot be read: "),
    "half a devkit": (write_official, {f"{KIT}.tar.gz": b"\x1f\x8b\x08" + bytes(20)}, "cannot be read: "),
    "another csv": (write_kaggle, {CSV: b"a,b\n"}, "does not begin with the line ImageId,PredictionString"),
    "a line without a class": (write_kaggle, {CSV: b"ImageId,PredictionString\nx,\n"}, "line 2 of"),
    "one class more": (write_zips, {"val_map.txt": f"{VAL[0][0]}.JPEG\t3\n".encode()}, "1 of 4 classes of val"),
    "other images": (write_zips, {"val_map.txt": b"x.JPEG\t0\n"}, "1 of 1 images are not in it, the first is 'x.JPEG'"),
    "no zip": (write_zips, {"val.zip": b"PK\3\4"}, "val.zip' cannot be read: File is not a zip file; is its download"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_open_splits__says_what_does_not_fit(name: str, tmp_path: Path) -> None:
    write, files, reason = MISFITS[name]
    assert reason in message(write_files(write(tmp_path), files))


def test_open_splits__needs_labels(tmp_path: Path) -> None:
    write_webdataset(tmp_path)
    write_tar(tmp_path / "imagenet1k-validation-00.tar", {"1.jpg": b"", "1.cls": b"0", "2.jpg": b""})
    assert "the images of val in" in message(tmp_path)
    assert "(webdataset) have no labels (1 of 2 samples" in message(tmp_path)
    write_tar(tmp_path / "imagenet1k-validation-00.tar", samples(val_files()))
    write_tar(tmp_path / "imagenet1k-train-0001.tar", {"1.jpg": b""})
    assert "the images of train in" in message(tmp_path)


def test_open_splits__a_test_set_without_labels_is_not_taken_for_val(tmp_path: Path) -> None:
    write_parquets(tmp_path)
    (tmp_path / "data" / "validation-00000-of-00001.parquet").unlink()
    assert "the images of val in" in message(tmp_path)
    write_parquet(
        tmp_path / "data" / "test-00000-of-00001.parquet", [b"1"], labels=[2], class_names=["tench", "goldfish", "dog"]
    )
    assert classes_of(open_splits(tmp_path).val) == {b"1": 2}


def test_open_splits__tells_all_that_is_missing_of_several_layouts(tmp_path: Path) -> None:
    write_files(tmp_path, below("train", train_files()) | {"LOC_val_solution.csv": b"", "val_map.txt": b""})
    error = message(tmp_path)
    assert "has folders per class for train, but no val" in error
    assert "; or " in error
    assert "but no train_map.txt" in error


def test_open_splits__without_scipy_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    assert "needs scipy: pip install scipy" in message(write_official(tmp_path))


def test_open_splits__reads_a_devkit_that_is_packed_without_compression(tmp_path: Path) -> None:
    write_official(tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    write_tar(tmp_path / "ILSVRC2012_devkit_t12.tar", devkit(), format=tarfile.GNU_FORMAT)
    splits: Splits = open_splits(tmp_path)
    assert classes_of(splits.val) == VAL_CLASSES
