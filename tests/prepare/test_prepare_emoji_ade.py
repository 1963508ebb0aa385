"""EmojiADE (synthetic composites): layout, labels, edges that are left out, and the same scenes as EmojiCOCO."""

import csv
from pathlib import Path

import numpy as np
import pytest
from machine import Machine
from pictures import EMOJI
from PIL import Image
from scenery import few_scenes, make_material

from mcbeit.prepare import emoji_coco, prepare
from mcbeit.prepare.emoji_ade import EMOJI_ADE, class_table, label_map, labels_by_name, write_scenes
from mcbeit.prepare.folder import tree_sha256
from mcbeit.prepare.scenes import BY_SUBGROUP, CLASSES, Scene, compose

COUNTS = {"train": 8, "val": 6}
FOLDERS = {"train": "training", "val": "validation"}
LABELS = labels_by_name(BY_SUBGROUP)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_scenes(monkeypatch, **COUNTS)
        tree = tmp_path_factory.mktemp("emoji-ade")
        write_scenes(make_material(), BY_SUBGROUP, tree)
    return tree


def labels_of(tree: Path, split: str, number: int) -> np.ndarray:
    path = tree / "annotations" / FOLDERS[split] / f"ADE_{split}_{number:08d}.png"
    with Image.open(path) as file:
        assert (file.format, file.mode, file.size) == ("PNG", "L", (320, 320))
        return np.asarray(file)


def test_write_scenes__the_layout_of_ade(written: Path) -> None:
    assert {path.name for path in written.iterdir()} - {"ATTRIBUTION.md"} == set(EMOJI_ADE.entries)
    for split, count in COUNTS.items():
        names = {f"ADE_{split}_{number:08d}" for number in range(1, count + 1)}
        for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
            assert {path.name for path in (written / kind / FOLDERS[split]).iterdir()} == {
                f"{n}{suffix}" for n in names
            }


def test_write_scenes__labels_are_those_of_the_scenes_but_along_edges(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_scenes(monkeypatch, **COUNTS)
    material, seen = make_material(), set[int]()
    for split, count in COUNTS.items():
        for number in range(1, count + 1):
            labels, scene = labels_of(written, split, number), compose(material, split, number)
            assert labels.max() <= 17
            assert (labels[scene.owners == 0] <= 1).all()
            for own, emoji in enumerate(scene.emoji, start=1):
                inside = labels[scene.owners == own]
                assert set(inside.tolist()) <= {0, LABELS[emoji.subgroup]}
            assert 0 < (labels == 0).mean() < 0.1
            seen |= set(labels.ravel().tolist())
    assert {0, 1, LABELS["animal-mammal"], LABELS["transport-air"]} <= seen


def test_label_map__one_pixel_on_either_side_of_an_edge_is_left_out() -> None:
    owners = np.zeros((320, 320), dtype=np.uint8)
    owners[10:20, 10:20] = 1
    owners[10:20, 20:30] = 2  # another of the same class: no edge between them
    dog = next(one for one in EMOJI if one.subgroup == "animal-mammal")
    labels = label_map(Scene(Image.new("RGB", (320, 320)), "lake", (dog, dog), (100, 100), owners), BY_SUBGROUP)
    expected = np.ones((320, 320), dtype=np.uint8)
    expected[9:21, 9:31] = 0
    expected[11:19, 11:29] = LABELS["animal-mammal"]
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint8


def test_labels__are_photograph_and_then_the_classes() -> None:
    assert {"photograph": 1, **{name: label for label, name in enumerate(CLASSES, start=2)}} == LABELS
    assert max(LABELS.values()) == 17


def test_class_table__by_hand() -> None:
    train, val = np.zeros((2, 17), dtype=np.int64), np.zeros((1, 17), dtype=np.int64)
    train[:, 0], train[0, 16], val[0, 16] = 80, 40, 7
    lines = class_table(BY_SUBGROUP, train, val).splitlines()
    assert lines[0] == "Idx\tRatio\tTrain\tVal\tStuff\tName"
    assert lines[1] == "1\t0.8000\t2\t0\t1\tphotograph"
    assert lines[2] == "2\t0.0000\t0\t0\t0\tanimal-bird"
    assert lines[17] == "17\t0.2000\t1\t1\t0\ttransport-ground"
    assert len(lines) == 18


def test_write_scenes__the_tables_are_of_the_files(written: Path) -> None:
    with (written / "objectInfo150.txt").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for split, column in (("train", "Train"), ("val", "Val")):
        maps = [labels_of(written, split, number) for number in range(1, COUNTS[split] + 1)]
        for row in rows:
            assert int(row[column]) == sum((labels == int(row["Idx"])).any() for labels in maps)
    photographs = dict(line.split(" ") for line in (written / "sceneCategories.txt").read_text().splitlines())
    assert len(photographs) == 14
    assert {name for key, name in photographs.items() if "train" in key} <= {"lake", "wood"}
    assert {name for key, name in photographs.items() if "val" in key} <= {"dune", "reef"}


def test_write_scenes__the_same_bytes_twice(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_scenes(monkeypatch, **COUNTS)
    write_scenes(make_material(), BY_SUBGROUP, tmp_path)
    for tree in (tmp_path, written):
        (tree / "ATTRIBUTION.md").touch()
    assert tree_sha256(tmp_path, EMOJI_ADE.entries) == tree_sha256(written, EMOJI_ADE.entries)


def test_write_scenes__shows_the_scenes_of_emoji_coco(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_scenes(monkeypatch, **COUNTS)
    emoji_coco.write_scenes(make_material(), BY_SUBGROUP, tmp_path)
    for split, folder in FOLDERS.items():
        ours = sorted((written / "images" / folder).iterdir())
        theirs = sorted((tmp_path / f"{split}2017").iterdir())
        assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_prepare__emoji_ade_with_its_credits(stocked: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_scenes(monkeypatch, train=3, val=2)
    manifest = prepare("emoji-ade", tmp_path / "out").manifest
    both = {"training": 3, "validation": 2}
    assert manifest.counts == {
        "annotations": both,
        "images": both,
        "objectInfo150.txt": {"": 1},
        "sceneCategories.txt": {"": 1},
    }
    assert EMOJI_ADE.describe(manifest.counts) == (
        "3 train + 2 val images, 16 classes and photograph; EmojiADE (synthetic composites)"
    )
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert text.startswith("# EmojiADE (synthetic composites)\n\n| style |")
    assert prepare("emoji-ade", tmp_path / "out", verify=True).state == "already there"
    (tmp_path / "out" / "objectInfo150.txt").unlink()
    again = prepare("emoji-ade", tmp_path / "out")
    assert (again.state, again.manifest) == ("rebuilt", manifest)
