"""EmojiADE (synthetic composites): scenes of emoji laid out as ADEChallengeData2016, for semantic segmentation.

Class-agnostic, it calls all emoji by one name.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageFilter

from mcbeit.prepare.folder import SPLITS, Built, Counts, DataSet
from mcbeit.prepare.photos import SEED
from mcbeit.prepare.scenes import (
    AGNOSTIC,
    BY_SUBGROUP,
    JPEG_QUALITY,
    Material,
    Naming,
    Scene,
    fetch_material,
    scenes,
)

NAME = "EmojiADE"
EDGE, PHOTOGRAPH = 0, 1  # labels; a reader ignores 0
FOLDERS = {"train": "training", "val": "validation"}
CLASS_TABLE, PHOTOGRAPH_LIST = "objectInfo150.txt", "sceneCategories.txt"
NOTE = f"The photograph of an image stands in {PHOTOGRAPH_LIST}."


def build(naming: Naming, tree: Path, workspace: Path) -> Built:
    """Write both splits under `tree`."""
    material = fetch_material(workspace)
    write_scenes(material, naming, tree)
    return Built(material.sources, material.attribution(naming.title(NAME), NOTE))


def labels_by_name(naming: Naming) -> dict[str, int]:
    """The label of the photograph, and from 2 on those of the classes."""
    return {name: label for label, name in enumerate(("photograph", *naming.groups), start=PHOTOGRAPH)}


def write_scenes(material: Material, naming: Naming, tree: Path) -> None:
    """Write `images/FOLDER/ADE_SPLIT_%08d.jpg`, `annotations/FOLDER/ADE_SPLIT_%08d.png` and the two tables."""
    photographs: list[str] = []
    pixels = {split: _write_split(material, naming, split, tree, photographs) for split in SPLITS}
    (tree / PHOTOGRAPH_LIST).write_text("".join(photographs), encoding="utf-8")
    (tree / CLASS_TABLE).write_text(class_table(naming, pixels["train"], pixels["val"]), encoding="utf-8")


def _write_split(
    material: Material, naming: Naming, split: str, tree: Path, photographs: list[str]
) -> Int64[np.ndarray, "image label"]:
    """Write images and labels, go on with the list of photographs, and count the pixels of each label."""
    images, annotations = tree / "images" / FOLDERS[split], tree / "annotations" / FOLDERS[split]
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    pixels = []
    for number, scene in enumerate(scenes(material, split), start=1):
        name, labels = f"ADE_{split}_{number:08d}", label_map(scene, naming)
        scene.image.save(images / f"{name}.jpg", quality=JPEG_QUALITY)
        Image.fromarray(labels).save(annotations / f"{name}.png")
        photographs.append(f"{name} {scene.photograph}\n")
        pixels.append(np.bincount(labels.ravel(), minlength=len(naming.groups) + 2)[PHOTOGRAPH:])
    return np.array(pixels)


def label_map(scene: Scene, naming: Naming) -> UInt8[np.ndarray, "height width"]:
    """The label of every pixel: 1 for the photograph, from 2 on the classes, 0 along the edges between two of them.

    Of such an edge the outermost pixel on either side is left out: colours mix there.
    """
    label_of = labels_by_name(naming)
    of_emoji = (label_of[naming.class_of[emoji.subgroup]] for emoji in scene.emoji)
    of_owner = np.array([PHOTOGRAPH, *of_emoji], dtype=np.uint8)
    labels = of_owner[scene.owners]
    picture = Image.fromarray(labels)
    highest, lowest = (np.asarray(picture.filter(rank(3))) for rank in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    return np.where(highest == lowest, labels, np.uint8(EDGE))


def class_table(
    naming: Naming, train: Int64[np.ndarray, "train_image label"], val: Int64[np.ndarray, "val_image label"]
) -> str:
    """Of pixels per image and label: share of the labelled pixels of train, and number of images of train and val."""
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    ratios = train.sum(axis=0) / train.sum()
    for index, (name, label) in enumerate(labels_by_name(naming).items()):
        seen = [np.count_nonzero(pixels[:, index]) for pixels in (train, val)]
        is_stuff = int(label == PHOTOGRAPH)
        lines.append(f"{label}\t{ratios[index]:.4f}\t{seen[0]}\t{seen[1]}\t{is_stuff}\t{name}")
    return "\n".join([*lines, ""])


def describe(naming: Naming, counts: Counts) -> str:
    """For example `2000 train + 400 val images, 16 classes and photograph; EmojiADE (synthetic composites)`."""
    totals = " + ".join(f"{counts['images'][FOLDERS[split]]} {split}" for split in SPLITS)
    return f"{totals} images, {naming.counted()} and photograph; {naming.title(NAME)}"


def data_set(naming: Naming) -> DataSet:
    """The data set under some names of classes."""
    return DataSet(
        name=f"emoji-ade{naming.suffix}",
        builder_version=1,
        seed=SEED,
        build=partial(build, naming),
        entries=("annotations", "images", CLASS_TABLE, PHOTOGRAPH_LIST),
        describe=partial(describe, naming),
    )


EMOJI_ADE, EMOJI_ADE_AGNOSTIC = data_set(BY_SUBGROUP), data_set(AGNOSTIC)
