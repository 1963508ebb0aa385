"""EmojiCOCO (synthetic composites): scenes of emoji laid out as COCO 2017, for detection and instance segmentation.

Class-agnostic, it calls all emoji by one name.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mcbeit.detection.rle import box, encode, import_masks
from mcbeit.prepare.credits import LICENCE_LINKS
from mcbeit.prepare.folder import SPLITS, Built, Counts, DataSet
from mcbeit.prepare.photos import SEED
from mcbeit.prepare.scenes import (
    AGNOSTIC,
    BY_SUBGROUP,
    JPEG_QUALITY,
    SCENE_SIZE,
    Instance,
    Material,
    Naming,
    Scene,
    fetch_material,
    scenes,
)

SET, NAME = "emoji-coco", "EmojiCOCO"
BUILDER_VERSION = 1
IDS = (1, 2, 3, 5, 8, 13, 16, 18, 22, 27, 44, 52, 61, 67, 81, 90)  # with gaps, as COCO has 80 classes up to 90
FIRST_IMAGE_ID = {"train": 1, "val": 100_001}
NOTE = "The photograph of an image and the codepoints of an emoji stand in the files in annotations/."


def build(naming: Naming, tree: Path, workspace: Path) -> Built:
    """Write both splits under `tree`."""
    import_masks()  # better missed now than after the downloads
    material = fetch_material(workspace)
    write_scenes(material, naming, tree)
    return Built(material.sources, material.attribution(naming.title(NAME), NOTE))


def category_ids(naming: Naming) -> dict[str, int]:
    """The id of each class."""
    return dict(zip(naming.groups, IDS, strict=False))


def write_scenes(material: Material, naming: Naming, tree: Path) -> None:
    """Write `SPLIT2017/%012d.jpg` and `annotations/instances_SPLIT2017.json`."""
    (tree / "annotations").mkdir()
    ids = category_ids(naming)
    id_of = {subgroup: ids[name] for subgroup, name in naming.class_of.items()}
    licences = sorted({photograph.credit.licence for photograph in material.photographs})
    licence_ids = {one.name: licences.index(one.credit.licence) + 1 for one in material.photographs}
    for split in SPLITS:
        folder = tree / f"{split}2017"
        folder.mkdir()
        images, annotations = [], []
        for image_id, scene in enumerate(scenes(material, split), start=FIRST_IMAGE_ID[split]):
            images.append(_image(scene, image_id, licence_ids))
            annotations += [_annotation(instance, image_id, id_of) for instance in scene.instances()]
            scene.image.save(folder / images[-1]["file_name"], quality=JPEG_QUALITY)
        content = {
            "info": _info(naming, split),
            "licenses": [
                {"id": number, "name": name, "url": LICENCE_LINKS.get(name, "")}
                for number, name in enumerate(licences, start=1)
            ],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"supercategory": group, "id": ids[name], "name": name} for name, group in naming.groups.items()
            ],
        }
        path = tree / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _info(naming: Naming, split: str) -> dict[str, Any]:
    what = f"{naming.title(NAME)}: emoji on crops of photographs, {split}"
    return {
        "description": f"{what}. Not the COCO data set, only laid out like it.",
        "contributor": f"mcbeit data prepare {SET}{naming.suffix}",
        "version": str(BUILDER_VERSION),
        "seed": SEED,
    }


def _image(scene: Scene, image_id: int, licence_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "license": licence_ids[scene.photograph],
        "file_name": f"{image_id:012d}.jpg",
        "height": SCENE_SIZE,
        "width": SCENE_SIZE,
        "id": image_id,
        "photograph": scene.photograph,
    }


def _annotation(instance: Instance, image_id: int, id_of: Mapping[str, int]) -> dict[str, Any]:
    return {
        "segmentation": encode(instance.mask),
        "area": float(instance.mask.sum()),
        "iscrowd": int(instance.is_crowd),
        "image_id": image_id,
        "bbox": list(box(instance.mask)),
        "category_id": id_of[instance.emoji.subgroup],
        "id": 10 * image_id + instance.number,
        "emoji": instance.emoji.codepoints,
    }


def describe(naming: Naming, counts: Counts) -> str:
    """For example `2000 train + 400 val images, 16 classes; EmojiCOCO (synthetic composites)`."""
    totals = " + ".join(f"{counts[f'{split}2017']['']} {split}" for split in SPLITS)
    return f"{totals} images, {naming.counted()}; {naming.title(NAME)}"


def data_set(naming: Naming) -> DataSet:
    """The data set under some names of classes."""
    return DataSet(
        name=f"{SET}{naming.suffix}",
        builder_version=BUILDER_VERSION,
        seed=SEED,
        build=partial(build, naming),
        entries=("annotations", "train2017", "val2017"),
        describe=partial(describe, naming),
    )


EMOJI_COCO, EMOJI_COCO_AGNOSTIC = data_set(BY_SUBGROUP), data_set(AGNOSTIC)
