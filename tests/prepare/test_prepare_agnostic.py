"""The class-agnostic sets of scenes: those of the 16 classes, all emoji under one name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import Machine
from PIL import Image
from scenery import few_scenes, make_material

from mcbeit.detection.coco import open_coco_splits
from mcbeit.prepare import DATA_SETS, emoji_ade, emoji_coco, prepare
from mcbeit.prepare.folder import SPLITS
from mcbeit.prepare.glyphs import Emoji
from mcbeit.prepare.scenes import AGNOSTIC, BY_SUBGROUP, CLASSES, Naming, Scene, compose
from mcbeit.segmentation.scenes import open_scenes

COUNTS = {"train": 8, "val": 6}
NAMINGS = {"16": BY_SUBGROUP, "agnostic": AGNOSTIC}
TITLES = {
    "emoji-ade-agnostic": "EmojiADE, class-agnostic (synthetic composites)",
    "emoji-coco-agnostic": "EmojiCOCO, class-agnostic (synthetic composites)",
}


def write_both(builder: Any, root: Path) -> Path:
    """The folders `16` and `agnostic` below `root`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_scenes(monkeypatch, **COUNTS)
        for name, naming in NAMINGS.items():
            (root / name).mkdir()
            builder.write_scenes(make_material(), naming, root / name)
    return root


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(emoji_ade, tmp_path_factory.mktemp("ade"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_both(emoji_coco, tmp_path_factory.mktemp("coco"))


def files(root: Path) -> dict[str, bytes]:
    """Those below a folder, by their relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def annotations(root: Path, split: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
    return found


def uniform(mask: np.ndarray) -> np.ndarray:
    """Whether a pixel and those around it, as far as there are any, are all in the mask or all outside of it."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1, mode="edge"), (3, 3))
    return around.all(axis=(2, 3)) | ~around.any(axis=(2, 3))


# names


@pytest.mark.parametrize(("naming", "words"), [(BY_SUBGROUP, "16 classes"), (AGNOSTIC, "1 class")])
def test_naming__has_a_class_for_every_subgroup(naming: Naming, words: str) -> None:
    assert set(naming.class_of) == set(CLASSES)
    assert set(naming.class_of.values()) == set(naming.groups)
    assert naming.counted() == words


def test_data_sets__of_16_classes_keep_ids_and_labels() -> None:
    ids = [1, 2, 3, 5, 8, 13, 16, 18, 22, 27, 44, 52, 61, 67, 81, 90]
    assert emoji_coco.category_ids(BY_SUBGROUP) == dict(zip(sorted(CLASSES), ids, strict=True))
    assert emoji_ade.labels_by_name(BY_SUBGROUP) == {
        "photograph": 1,
        **{name: label for label, name in enumerate(sorted(CLASSES), start=2)},
    }
    assert {DATA_SETS[name].builder_version for name in ("emoji-ade", "emoji-coco")} == {1}


# label maps


def test_ade__shows_the_same_images(ade: Path) -> None:
    assert len(files(ade / "16" / "images")) == sum(COUNTS.values())
    assert files(ade / "agnostic" / "images") == files(ade / "16" / "images")
    lists = [(ade / name / "sceneCategories.txt").read_bytes() for name in NAMINGS]
    assert lists[0] == lists[1]


def test_ade__label_2_is_every_emoji(ade: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_scenes(monkeypatch, **COUNTS)
    material, num_merged = make_material(), 0
    for split, folder in emoji_ade.FOLDERS.items():
        for number in range(1, COUNTS[split] + 1):
            place = Path("annotations", folder, f"ADE_{split}_{number:08d}.png")
            full, merged = (np.asarray(Image.open(ade / name / place)) for name in NAMINGS)
            is_emoji = compose(material, split, number).owners > 0
            np.testing.assert_array_equal(merged, np.where(uniform(is_emoji), np.where(is_emoji, 2, 1), 0))
            np.testing.assert_array_equal(merged == 1, full == 1)
            assert (merged[full >= 2] == 2).all()
            num_merged += ((merged == 2) & (full == 0)).sum()
    assert num_merged > 0  # edges between two classes


def test_label_map__emoji_that_touch_have_no_edge_between_them() -> None:
    owners = np.zeros((320, 320), dtype=np.uint8)
    owners[10:20, 10:20] = 1
    owners[10:20, 20:30] = 2
    emoji = (Emoji("1f436", "animals-nature", "animal-mammal"), Emoji("1f34e", "food-drink", "food-fruit"))
    scene = Scene(Image.new("RGB", (320, 320)), "lake", emoji, (100, 100), owners)
    labels, full = (emoji_ade.label_map(scene, naming) for naming in (AGNOSTIC, BY_SUBGROUP))
    expected = np.ones((320, 320), dtype=np.uint8)
    expected[9:21, 9:31] = 0
    expected[11:19, 11:29] = 2
    np.testing.assert_array_equal(labels, expected)
    assert (full[11:19, 19:21] == 0).all()


def test_open_scenes__reads_two_classes(ade: Path) -> None:
    scenes = open_scenes(ade / "agnostic")
    assert scenes.layout == "ade20k"
    assert scenes.train.classes == scenes.val.classes == ["photograph", "emoji"]
    assert (len(scenes.train), len(scenes.val)) == (8, 6)
    assert set(np.unique(scenes.train.labels_of(0))) == {0, 1, 255}
    rows = [line.split("\t") for line in (ade / "agnostic" / "objectInfo150.txt").read_text().splitlines()]
    assert [row[-1] for row in rows] == ["Name", "photograph", "emoji"]
    assert [row[2:5] for row in rows[1:]] == [["8", "6", "1"], ["8", "6", "0"]]


# objects


def test_coco__shows_the_same_images(coco: Path) -> None:
    for split, count in COUNTS.items():
        assert len(files(coco / "16" / f"{split}2017")) == count
        assert files(coco / "agnostic" / f"{split}2017") == files(coco / "16" / f"{split}2017")


@pytest.mark.parametrize("split", SPLITS)
def test_coco__marks_the_same_objects_under_one_category(coco: Path, split: str) -> None:
    full, merged = (annotations(coco / name, split) for name in NAMINGS)
    assert merged["categories"] == [{"supercategory": "emoji", "id": 1, "name": "emoji"}]
    assert {one["category_id"] for one in merged["annotations"]} == {1}
    assert len({one["category_id"] for one in full["annotations"]}) > 1
    assert merged["annotations"] == [{**one, "category_id": 1} for one in full["annotations"]]
    assert [merged[key] for key in ("images", "licenses")] == [full[key] for key in ("images", "licenses")]
    assert merged["info"]["description"].startswith(TITLES["emoji-coco-agnostic"])
    assert merged["info"]["contributor"] == "mcbeit data prepare emoji-coco-agnostic"


def test_open_coco_splits__reads_one_class(coco: Path) -> None:
    splits = open_coco_splits(coco / "agnostic")
    assert splits.layout == "coco2017"
    assert splits.train.classes == splits.val.classes == ["emoji"]
    assert splits.train.category_ids.tolist() == [1]
    assert splits.train.num_objects == open_coco_splits(coco / "16").train.num_objects > 0


# from packages


@pytest.mark.parametrize(("name", "classes"), [("emoji-ade", "1 class and photograph"), ("emoji-coco", "1 class")])
def test_prepare__says_what_it_is(
    name: str, classes: str, stocked: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_scenes(monkeypatch, train=3, val=2)
    agnostic = f"{name}-agnostic"
    manifest = prepare(agnostic, tmp_path / "out").manifest
    assert (manifest.name, manifest.builder_version) == (agnostic, 1)
    assert DATA_SETS[agnostic].describe(manifest.counts) == f"3 train + 2 val images, {classes}; {TITLES[agnostic]}"
    assert (tmp_path / "out" / "ATTRIBUTION.md").read_text().startswith(f"# {TITLES[agnostic]}\n\n| style |")
    assert prepare(agnostic, tmp_path / "out", verify=True).state == "already there"
    plain = prepare(name, tmp_path / "plain").manifest
    assert (plain.counts, plain.sources) == (manifest.counts, manifest.sources)
    assert plain.sha256 != manifest.sha256
