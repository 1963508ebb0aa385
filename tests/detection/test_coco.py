import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cocos import annotation, content, rectangle, small_train, small_val, write_coco, write_split

from mcbeit.detection.coco import open_coco, open_coco_splits
from mcbeit.detection.coco_file import NO_OUTLINE, Outlines, read_coco
from mcbeit.detection.rle import decode, encode
from mcbeit.errors import DataError
from mcbeit.image_files import decode as decode_image
from mcbeit.sources import ImageSource, SubsetSource, source_notes


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


# what is read


def test_open_coco_splits__trains_on_images_with_objects_and_tests_on_all(coco: Path) -> None:
    train, val, layout = open_coco_splits(coco)
    assert layout == "coco2017"
    assert [train.image_ids.tolist(), val.image_ids.tolist()] == [[7, 42], [1, 2]]  # sorted, as detectron2 does
    assert train.classes == val.classes == ["disc", "square", "bar"]
    assert train.category_ids.tolist() == [3, 17, 90]
    assert (train.num_objects, val.num_objects) == (3, 1)
    assert train.name(1) == f"{coco}/train2017/000000000042.png"
    assert decode_image(train.read(1)).size == (40, 30)
    assert train.size_of(1) == (30, 40)


def test_annotations__objects_by_image_without_crowds_and_without_shapes_of_two_points(coco: Path) -> None:
    train, val, _ = open_coco_splits(coco)
    height, width, labels, segmentations = train.annotations(1)
    assert (height, width, labels.tolist()) == (30, 40, [2, 1])
    assert segmentations == [rectangle(2, 3, 10, 20), rectangle(20, 10, 12, 6)]
    assert int(decode(segmentations[1], height, width).sum()) == 12 * 6
    assert val.annotations(0).labels.tolist() == val.annotations(0).segmentations == []
    assert source_notes(train) == [
        f"'{coco}/annotations/instances_train2017.json': left out as they have no usable outline: 1 objects",
        f"'{coco}/annotations/instances_train2017.json': left out as they show no object: 2 of 4 images",
    ]
    assert source_notes(val) == []


def test_coco_source__is_a_source_like_any_other(coco: Path) -> None:
    train = open_coco_splits(coco).train
    assert isinstance(train, ImageSource)
    assert train.labels is None
    assert len(train) == 2
    copy = pickle.loads(pickle.dumps(train))  # as a loader process gets it
    assert copy.annotations(0).segmentations == train.annotations(0).segmentations
    assert SubsetSource(train, [1]).name(0) == train.name(1)


def test_summary__tells_other_annotations_and_other_images(tmp_path: Path) -> None:
    def move(values: dict[str, Any]) -> None:
        values["annotations"][0]["segmentation"][0][0] += 1

    first, same = (open_coco_splits(write_coco(tmp_path / name)).train.summary() for name in "ab")
    assert first == same
    assert first["images"] == 2
    assert open_coco_splits(write_coco(tmp_path / "c", change=move)).train.summary() != first


def test_open_coco_splits__a_set_of_ones_own_without_a_year(tmp_path: Path) -> None:
    splits = open_coco_splits(write_coco(tmp_path, year=""))
    assert splits.layout == "coco"
    assert len(splits.train) == 2


def test_open_coco_splits__annotations_beside_the_images(tmp_path: Path) -> None:
    for split, folder, values in (("train", "train", small_train()), ("val", "valid", small_val())):
        annotations, images = write_split(tmp_path / "once", split, values)
        images.rename(tmp_path / folder)
        annotations.rename(tmp_path / folder / "_annotations.coco.json")
    splits = open_coco_splits(tmp_path)
    assert (splits.layout, len(splits.val)) == ("roboflow", 2)


def test_open_coco__any_file_with_any_folder(tmp_path: Path) -> None:
    annotations, images = write_split(tmp_path, "train", small_train())
    everything = open_coco(str(annotations), str(images))
    assert everything.image_ids.tolist() == [7, 9, 11, 42]
    assert [len(everything.annotations(i).labels) for i in range(4)] == [1, 0, 0, 2]
    assert len(open_coco(str(annotations), str(images), only_with_objects=True)) == 2


def test_read_coco__run_length_codes_of_single_objects(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:9, 4:17] = True
    runs = [4 * 20 + 3, *([6, 14] * 12), 6]  # down the columns
    codes = [encode(mask), {"size": [20, 30], "counts": [*runs, 600 - sum(runs)]}]
    values = content(
        {5: (20, 30)}, [annotation(i + 1, 5, 3, (4, 3, 13, 6), segmentation=code) for i, code in enumerate(codes)]
    )
    source = open_coco(*map(str, write_split(tmp_path, "train", values)))
    for segmentation in source.annotations(0).segmentations:
        assert np.array_equal(decode(segmentation, 20, 30), mask)


def test_outlines__give_back_what_they_were_given() -> None:
    outlines, code = Outlines(), {"size": [2, 2], "counts": "04", "more": 1}
    several = [[1, 2, 3.5, 4, 5, 6], [7, 8, 9, 10, 11, 12.25, 13, 14]]
    given = [several, code, [[0, 0, 1, 1, 2, 2]]]
    assert [outlines.add(segmentation) for segmentation in given] == [0, 1, 2]
    assert [outlines[i] for i in range(3)] == [several, {"size": [2, 2], "counts": "04"}, given[2]]
    for nothing in (None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], "x", [["a"] * 6], {"counts": "04"}, [5]):
        assert outlines.add(nothing) == NO_OUTLINE
    assert outlines.add([[1, 2], [3, 4, 5, 6, 7, 8], ["x"] * 6]) == 3
    assert outlines[3] == [[3, 4, 5, 6, 7, 8]]


def test_read_coco__keeps_little_of_many_objects(tmp_path: Path) -> None:
    """COCO has 860,000 objects of some 40 numbers: 8 bytes each, and 48 for an object."""
    box = rectangle(1, 2, 3, 4)[0] * 5
    things = [annotation(i + 1, 1 + i % 50, 17, (1, 2, 3, 4), segmentation=[box]) for i in range(2000)]
    values = content({i + 1: (40, 40) for i in range(50)}, things)
    path = tmp_path / "many.json"
    path.write_text(json.dumps(values))
    file = read_coco(str(path))
    assert (file.num_objects == 40).all()
    assert len(pickle.dumps(file)) < 2000 * (40 * 8 + 48) + 20_000
    assert file.segmentations[int(file.outlines[file.starts[3] + 7])] == [box]


# what is refused


def set_to(section: str, index: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        entry = values[section][index]
        changed = {**entry, key: value}
        values[section][index] = {name: content for name, content in changed.items() if content is not None}

    return change


def drop(section: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.pop(section)


def clear(section: str) -> Callable[[dict[str, Any]], None]:
    return lambda values: values[section].clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("annotations"), "it needs the lists images, annotations, categories, found info, images, categories"),
        (clear("images"), "5 annotations are of unknown images, such as 5 of 42"),
        (clear("categories"), "it has 4 images and 0 categories; 5 annotations are of unknown categories"),
        (clear("annotations"), "no image of "),
        (set_to("images", 0, "id", 7), "1 ids of images occur more than once, such as 7"),
        (set_to("annotations", 0, "id", 1), "1 ids of annotations occur more than once, such as 1"),
        (set_to("categories", 0, "id", 17), "1 ids of categories occur more than once, such as 17"),
        (set_to("annotations", 1, "image_id", 8), "1 annotations are of unknown images, such as 1 of 8"),
        (set_to("annotations", 1, "category_id", 4), "1 annotations are of unknown categories, such as 1 of 4"),
        (set_to("annotations", 1, "image_id", None), 'without id or image_id, such as {"id": 1,'),
        (set_to("annotations", 1, "id", "one"), "1 of its annotation entries without id or image_id"),
        (set_to("images", 1, "file_name", None), 'without id, file_name, height or width, such as {"id": 7,'),
        (set_to("images", 1, "height", 0), "1 of its image entries without id, file_name, height or width"),
        (set_to("categories", 1, "name", None), "1 of its category entries without id or name"),
        (set_to("images", 1, "file_name", "gone.png"), "1 of 4 are missing, the first is 'gone.png'"),
        (set_to("categories", 2, "name", "rod"), "are not the same: 90 is 'rod' and 'bar'"),
        (lambda values: values["categories"].append({"id": 5, "name": "hole"}), "(4) and "),
    ],
)  # fmt: skip
def test_open_coco_splits__names_what_is_wrong_with_the_annotations(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    write_coco(tmp_path)
    values = small_train()
    change(values)
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=re.escape(message)):
        open_coco_splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "are no JSON: Expecting property name"), ("[]", "found list"), ("{}", "found nothing"), ("", "are no JSON"),
     ("\xff", "are no JSON")],
)  # fmt: skip
def test_read_coco__other_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(message)):
        read_coco(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["annotations/instances_val2017.json"], "laid out as coco2017, but lacks annotations/instances_val2017.json"),
        (["train2017"], "is laid out as coco2017, but lacks train2017"),
        (["val2017", "annotations/instances_train2017.json"], "lacks annotations/instances_train2017.json, val2017"),
        (["annotations"], "found train2017, val2017; expected one of: coco2017: annotations/instances_train2017.json "
                          "with train2017/, annotations/instances_val2017.json with val2017/; coco: "),
    ],
)  # fmt: skip
def test_open_coco_splits__says_what_a_folder_lacks(lost: list[str], message: str, coco: Path) -> None:
    for name in lost:
        (coco / name).rename(coco.parent / "lost" if len(lost) == 1 else coco.parent / name.replace("/", "-"))
    with pytest.raises(DataError, match=re.escape(message)):
        open_coco_splits(coco)


def test_open_coco__places_that_are_not_there(coco: Path, tmp_path: Path) -> None:
    annotations, images = coco / "annotations" / "instances_val2017.json", coco / "val2017"
    with pytest.raises(DataError, match=r"there are no annotations '.*none\.json' \(looked from"):
        open_coco(str(tmp_path / "none.json"), str(images))
    with pytest.raises(DataError, match=r"there is no folder of images '.*nowhere', which '.*val2017\.json' is about"):
        open_coco(str(annotations), str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="is a file: name the folder that holds it"):
        open_coco_splits(annotations)
    with pytest.raises(DataError, match="is not there"):
        open_coco_splits(tmp_path / "nothing")


def test_open_coco__objects_without_outlines_cannot_be_trained_on(tmp_path: Path) -> None:
    boxes = content({1: (20, 20)}, [annotation(1, 1, 3, (1, 1, 9, 9), segmentation=None)])
    annotations, images = write_split(tmp_path, "train", boxes)
    with pytest.raises(DataError, match="has an object to train on, as 1 have no outline"):
        open_coco(str(annotations), str(images), only_with_objects=True)
