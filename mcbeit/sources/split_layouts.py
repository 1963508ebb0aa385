"""How people lay out images to train on and images to test on, and how each layout is opened.

A layout is found by the names of files alone, so that nothing is read before all of it is known to be there.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from mcbeit.errors import DataError
from mcbeit.sources import location
from mcbeit.sources.files import open_folder, open_imagefolder, suffix_of
from mcbeit.sources.imagenet_labels import ClassNames, read_devkit, read_solution
from mcbeit.sources.labels import number_labels
from mcbeit.sources.listfile import open_list
from mcbeit.sources.parquet import open_parquet
from mcbeit.sources.source import MANY_CHANNEL_SUFFIXES, ImageSource
from mcbeit.sources.tar import open_class_tars, open_tar
from mcbeit.sources.zip import open_zip_list

WORDS = {"train": ("train",), "val": ("val", "validation", "test")}  # what splits are called, the best first
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12.tar")
KAGGLE_IMAGES, SOLUTION = "ILSVRC/Data/CLS-LOC", "LOC_val_solution.csv"

Opener = Callable[..., ImageSource]  # takes the keyword `channels`
ReadClasses = Callable[[str], ClassNames]


class Plan(NamedTuple):
    """What opens the two splits."""

    train: Opener
    val: Opener


class Layout(NamedTuple):
    """The files that it has, and how to find them in a folder: None without a sign of it, DataError if some lack."""

    expected: str
    find: Callable[[str], Plan | None]


def _find_folders(root: str) -> Plan | None:
    """One folder per class."""
    train, val = _class_folder(root, "train"), _class_folder(root, "val")
    if train and val:
        return Plan(partial(open_imagefolder, train), partial(open_imagefolder, val))
    if train and (flat := _flat_folder(root)):
        raise DataError(
            f"the images in '{flat}' have no folders per class, and neither {DEVKITS[0]} nor {SOLUTION}, which tell "
            f"the classes of ImageNet, is in '{root}'"
        )
    if train or val:
        there, other = ("train", "val") if train else ("val", "train")
        raise DataError(f"'{root}' has folders per class for {there}, but no {_or(WORDS[other])} with any beside it")
    return None


def _find_official(root: str) -> Plan | None:
    """ImageNet as image-net.org gives it, or with one of its tar files unpacked."""
    if _existing(root, TRAIN_TAR, VAL_TAR, *DEVKITS) is None:
        return None
    return Plan(_imagenet_train(root), _imagenet_val(root, root, read_devkit, DEVKITS))


def _find_kaggle(root: str) -> Plan | None:
    """ImageNet as Kaggle gives it, or with its solution beside `train` and `val`."""
    if _existing(root, KAGGLE_IMAGES, SOLUTION) is None:
        return None
    images = _existing(root, KAGGLE_IMAGES) or root
    return Plan(_imagenet_train(images), _imagenet_val(images, root, read_solution, (SOLUTION,)))


def _imagenet_train(images: str) -> Opener:
    """Whatever the images of `train` lie in."""
    if tar := _existing(images, TRAIN_TAR):
        return partial(open_class_tars, tar)
    if folder := _class_folder(images, "train"):
        return partial(open_imagefolder, folder)
    raise DataError(f"'{images}' has neither {TRAIN_TAR} nor a folder train with a folder per class")


def _imagenet_val(images: str, root: str, read_classes: ReadClasses, class_files: tuple[str, ...]) -> Opener:
    """Whatever the images of `val` lie in; a file in `root` tells their classes, if no folders do."""
    tar, classes = _existing(images, VAL_TAR), _existing(root, *class_files)
    unsorted = tar or _flat_folder(images)
    if unsorted and classes:
        open_images = partial(open_tar, [unsorted]) if tar else partial(open_folder, unsorted)
        return partial(_open_unsorted, open_images, read_classes, classes)
    if folder := _class_folder(images, "val"):
        return partial(open_imagefolder, folder)
    if unsorted:
        raise DataError(f"the classes of '{unsorted}' are in {class_files[0]}, which is not in '{root}'")
    raise DataError(f"'{images}' has neither {VAL_TAR} nor a folder val with images")


def _open_unsorted(images: Opener, read_classes: ReadClasses, where: str, *, channels: int) -> ImageSource:
    """Images with the classes that the file `where` names. Raises DataError unless it names them for just these."""
    source, class_of = images(channels=channels), read_classes(where)
    stems = [re.split("[/:]", source.name(i))[-1].rpartition(".")[0] for i in range(len(source))]
    strange, lost = [stem for stem in stems if stem not in class_of], class_of.keys() - set(stems)
    if strange or lost:
        example = f"'{strange[0]}' has no class" if strange else f"'{min(lost)}' is missing"
        raise DataError(
            f"'{where}' names the classes of {len(class_of)} images, and there are {len(stems)} such as "
            f"'{source.name(0)}': {example}; are both complete?"
        )
    numbered = number_labels([class_of[stem] for stem in stems], where)
    source.labels, source.classes = numbered.labels, list(numbered.classes)
    return source


def _find_lists(root: str) -> Plan | None:
    """The lists of BEiT and mc-BEiT."""
    there = {split: _existing(root, f"{split}_map.txt") is not None for split in WORDS}
    if not any(there.values()):
        return None
    for split in WORDS:
        if not there[split]:
            raise DataError(f"'{root}' has a list of images of one split, but no {split}_map.txt")
    return Plan(partial(_open_list, root, "train"), partial(_open_list, root, "val"))


def _open_list(root: str, split: str, *, channels: int) -> ImageSource:
    """The images lie in a folder called as the split, in a zip file, or beside the list."""
    names, archive = location.join(root, f"{split}_map.txt"), location.join(root, f"{split}.zip")
    if not location.is_folder(location.join(root, split)) and location.exists(archive):
        return open_zip_list(names, archive, channels=channels)
    return open_list(names, channels=channels)


def _find_shards(suffix: str, open_shards: Opener, root: str) -> Plan | None:
    """Files of many images, whose names or folders tell the split."""
    found = {split: _shards(root, words, suffix) for split, words in WORDS.items()}
    if not any(found.values()):
        return None
    for split, shards in found.items():
        if not shards:
            raise DataError(f"'{root}' has {suffix} files of one split, but none called {_or(WORDS[split])}")
    return Plan(partial(open_shards, found["train"]), partial(open_shards, found["val"]))


def _shards(root: str, words: tuple[str, ...], suffix: str) -> list[str]:
    """The files of a split: its name is a word of theirs, or that of the folder that they lie in."""
    for word in words:
        for folder in (root, location.join(root, "data")):
            named = [path for path in _files(folder, suffix) if _has_word(location.base_name(path), word)]
            if named:
                return named
        if inside := _files(location.join(root, word), suffix):
            return inside
    return []


def _files(folder: str, suffix: str) -> list[str]:
    """ImageNet's own tar files are no shards."""
    if not location.is_folder(folder):
        return []
    names = [name for name in location.names(folder) if suffix_of(name) == suffix and not name.startswith("ILSVRC")]
    return [location.join(folder, name) for name in names]


def _has_word(name: str, word: str) -> bool:
    return re.search(f"(?<![a-z]){word}(?![a-z])", name.lower()) is not None


def _class_folder(root: str, split: str) -> str | None:
    """The folder of a split, if it holds folders and no loose images."""
    folders = [location.join(root, word) for word in WORDS[split]]
    return next((folder for folder in folders if _holds_folders(folder) and not _holds_images(folder)), None)


def _flat_folder(root: str) -> str | None:
    """The folder of images to test on, if they lie directly in it."""
    return next((folder for word in WORDS["val"][:2] if _holds_images(folder := location.join(root, word))), None)


def _holds_images(folder: str) -> bool:
    return location.is_folder(folder) and any(
        suffix_of(name) in MANY_CHANNEL_SUFFIXES for name in location.names(folder)
    )


def _holds_folders(folder: str) -> bool:
    return location.is_folder(folder) and any(
        location.is_folder(location.join(folder, name)) for name in location.names(folder)
    )


def _existing(root: str, *names: str) -> str | None:
    """The first of these that is there."""
    return next((place for name in names if location.exists(place := location.join(root, name))), None)


def _or(words: tuple[str, ...]) -> str:
    return " or ".join(words)


LAYOUTS = {
    "folders": Layout("train/CLASS/IMAGE and val/CLASS/IMAGE (or validation/, test/)", _find_folders),
    "official": Layout(
        f"{TRAIN_TAR} (or train/CLASS/IMAGE), {VAL_TAR} (or val/IMAGE) and {DEVKITS[0]} (or its folder)", _find_official
    ),
    "kaggle": Layout(f"{KAGGLE_IMAGES}/train/CLASS/IMAGE, {KAGGLE_IMAGES}/val/IMAGE and {SOLUTION}", _find_kaggle),
    "lists": Layout("train_map.txt and val_map.txt with train/ and val/, or train.zip and val.zip", _find_lists),
    "webdataset": Layout(
        "*train*.tar and *val*.tar, or train/*.tar and val/*.tar", partial(_find_shards, ".tar", open_tar)
    ),
    "parquet": Layout(
        "data/train-*.parquet and data/validation-*.parquet", partial(_find_shards, ".parquet", open_parquet)
    ),
}
