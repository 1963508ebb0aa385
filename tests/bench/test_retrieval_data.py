from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
from shards import write_tar

from mcbeit.bench.retrieval_data import LAYOUTS, RetrievalKind, open_retrieval
from mcbeit.bench.retrieval_set import RetrievalSet
from mcbeit.errors import DataError


def make(root: Path, *paths: str, **texts: str) -> Path:
    """Files below root; images hold their own path."""
    for path, text in ({path: path for path in paths} | {f"{name}.txt": text for name, text in texts.items()}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def answers(found: RetrievalSet) -> Mapping[str, tuple[list[str], list[str]]]:
    """For each query what is right, and what is junk."""
    (relevance,) = found.relevance.values()
    named = [
        [[found.gallery.read(i).decode() for i in indices.tolist()] for indices in kind]
        for kind in (relevance.relevant, relevance.junk)
    ]
    return {found.queries.read(i).decode(): (named[0][i], named[1][i]) for i in range(len(found.queries))}


def message(place: Path, **options: object) -> str:
    with pytest.raises(DataError) as error:
        open_retrieval(str(place), **options)  # type: ignore[arg-type]
    return str(error.value)


# folders of one's own


@pytest.mark.parametrize("queries", ["query", "queries"])
def test_open_retrieval__takes_queries_and_gallery_by_the_names_of_their_folders(queries: str, tmp_path: Path) -> None:
    make(tmp_path, f"{queries}/7/a.jpg", f"{queries}/12/b.jpg", f"{queries}/99/c.jpg")
    make(tmp_path, "gallery/7/d.jpg", "gallery/12/e.jpg", "gallery/7/f.jpg", "gallery/8/g.jpg")
    found = open_retrieval(str(tmp_path))
    assert found.layout == "query-gallery"
    assert list(found.relevance) == ["same class"]
    assert answers(found) == {
        f"{queries}/7/a.jpg": (["gallery/7/d.jpg", "gallery/7/f.jpg"], []),
        f"{queries}/12/b.jpg": (["gallery/12/e.jpg"], []),
        f"{queries}/99/c.jpg": ([], []),
    }


def test_open_retrieval__takes_shards_of_queries_and_gallery(tmp_path: Path) -> None:
    write_tar(tmp_path / "query" / "0.tar", {"1.jpg": b"q", "1.cls": b"4"})
    write_tar(tmp_path / "gallery" / "0.tar", {"1.jpg": b"x", "1.cls": b"3", "2.jpg": b"y", "2.cls": b"4"})
    assert answers(open_retrieval(str(tmp_path))) == {"q": (["y"], [])}


def test_open_retrieval__each_image_of_a_set_is_a_query_to_all_others(tmp_path: Path) -> None:
    found = open_retrieval(str(make(tmp_path, "cat/1.png", "cat/2.png", "dog/3.png")))
    assert found.layout == "single"
    assert found.queries is found.gallery
    assert answers(found) == {
        "cat/1.png": (["cat/1.png", "cat/2.png"], ["cat/1.png"]),
        "cat/2.png": (["cat/1.png", "cat/2.png"], ["cat/2.png"]),
        "dog/3.png": (["dog/3.png"], ["dog/3.png"]),
    }
    (relevance,) = found.relevance.values()
    assert relevance.num_relevant.tolist() == [1, 1, 0]


def test_open_retrieval__takes_any_labelled_images(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png", "c.png", test_list="a.png 0\nb.png 1\nc.png 0\n")
    found = open_retrieval(str(tmp_path / "test_list.txt"))
    assert answers(found)["a.png"] == (["a.png", "c.png"], ["a.png"])
    images = {"1.npy": b"", "1.cls": b"0", "2.npy": b"", "2.cls": b"0", "3.npy": b"", "3.cls": b"1"}
    found = open_retrieval(str(write_tar(tmp_path / "s.tar", images)), channels=5)
    assert found.gallery.channels == 5


def test_open_retrieval__expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "pets/query/7/a.jpg", "pets/gallery/7/d.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_retrieval("~/pets").layout == "query-gallery"


# the usual data sets

CUB = ("001.Albatross", "100.Pelican", "101.White_Pelican", "200.Yellowthroat")


def write_cub(root: Path) -> Path:
    """Two images of four of the 200 classes; its files are in no order."""
    paths = {i + 1: f"{name}/{name}_{i % 2}.jpg" for i, name in enumerate(name for name in CUB for _ in range(2))}
    labels = [f"{i} {int(path[:3])}" for i, path in paths.items()]
    make(root, *(f"images/{path}" for path in paths.values()))
    images = "\n".join(f"{i} {path}" for i, path in paths.items())
    return make(root, images=images, image_class_labels="\n".join(labels[::-1]))


def test_open_retrieval__of_cub_is_the_second_half_of_its_classes(tmp_path: Path) -> None:
    found = open_retrieval(str(write_cub(tmp_path)))
    assert found.layout == "cub"
    assert found.gallery.classes == ["101.White_Pelican", "200.Yellowthroat"]
    right = answers(found)
    assert len(right) == 4
    first, second = (f"images/101.White_Pelican/101.White_Pelican_{i}.jpg" for i in range(2))
    assert (sorted(right[first][0]), right[first][1]) == ([first, second], [first])


def test_open_retrieval__of_stanford_online_products_is_its_test_set(tmp_path: Path) -> None:
    rows = ["59551 11318 1 bicycle_final/a_0.JPG", "59552 11319 1 bicycle_final/a_1.JPG", "3 11318 2 mug_final/b.JPG"]
    make(tmp_path, "bicycle_final/a_0.JPG", "bicycle_final/a_1.JPG", "mug_final/b.JPG", "mug_final/train.JPG")
    make(tmp_path, Ebay_test="\n".join(["image_id class_id super_class_id path", *rows]) + "\n", Ebay_train="")
    found = open_retrieval(str(tmp_path))
    assert found.layout == "sop"
    assert found.gallery.classes == ["11318", "11319"]
    assert answers(found)["mug_final/b.JPG"] == (["bicycle_final/a_0.JPG", "mug_final/b.JPG"], ["mug_final/b.JPG"])


def test_open_retrieval__knows_revisited_oxford(tmp_path: Path) -> None:
    make(tmp_path, "gnd_roxford5k.pkl", "jpg/x.jpg")
    assert "gnd_roxford5k.pkl' is no pickle of plain values" in message(tmp_path)
    assert "which has images of 3 channels, not 4" in message(tmp_path, channels=4)


# what does not fit


def test_open_retrieval__every_layout_may_be_asked_for(tmp_path: Path) -> None:
    assert get_args(RetrievalKind) == ("auto", *LAYOUTS)
    make(tmp_path, "query/a/1.jpg", "query/a/2.jpg", "gallery/a/3.jpg")
    assert len(open_retrieval(str(tmp_path), kind="single").queries) == 3


def test_open_retrieval__says_what_was_expected_and_found(tmp_path: Path) -> None:
    make(tmp_path / "a", "query/1/a.jpg", "readme.md")
    assert message(tmp_path / "a").endswith(
        "a' has no gallery: expected query/ID/IMAGE (or queries/) and gallery/ID/IMAGE; found query, readme.md"
    )
    assert "b' has no query: expected" in message(make(tmp_path / "b", "gallery/1/a.jpg"))
    make(tmp_path / "c", image_class_labels="1 1")
    assert "c' has no images.txt: expected CUB-200-2011 with images.txt" in message(tmp_path / "c")
    assert "c' has no Ebay_test.txt: expected Stanford Online Products" in message(tmp_path / "c", kind="sop")


def test_open_retrieval__needs_labels_and_several_classes(tmp_path: Path) -> None:
    error = message(make(tmp_path / "a", "jpg/1.jpg", "jpg/2.jpg"))
    assert "have one class, 'jpg', so every answer would be right; expected one of: revisited: gnd_roxford5k" in error
    assert "have no labels, which tell what is right" in message(write_tar(tmp_path / "s.tar", {"1.jpg": b""}))
    assert "is not an ImageFolder" in message(make(tmp_path / "b", "1.jpg"))
    assert "there is no image source at" in message(tmp_path / "nothing")


def test_open_retrieval__does_not_take_splits_for_classes(tmp_path: Path) -> None:
    error = message(make(tmp_path, "train/a/1.png", "val/a/2.png"))
    assert error.endswith(f"holds the splits train, val; name one of them, such as '{tmp_path}/val'")


def test_open_retrieval__needs_something_to_find(tmp_path: Path) -> None:
    make(tmp_path / "a", "query/1/a.jpg", "gallery/2/a.jpg")
    assert "nothing in the gallery of" in message(tmp_path / "a")
    assert "is right for any of its 2 queries" in message(make(tmp_path / "b", "x/1.jpg", "y/1.jpg"))


def test_open_retrieval__says_what_is_wrong_with_cub(tmp_path: Path) -> None:
    write_cub(tmp_path)
    (tmp_path / "images" / CUB[3] / f"{CUB[3]}_1.jpg").unlink()
    assert f"1 of 4 are missing, the first is '{CUB[3]}/{CUB[3]}_1.jpg'" in message(tmp_path)
    labels = tmp_path / "image_class_labels.txt"
    for text, reason in {
        "1\n": "line 1 of",
        "1 x\n": "has the class 'x', which is no number",
        "99 101\n": "has a class for image 99, which is not in",
        "1 100\n": "names no image of the test classes",
    }.items():
        labels.write_text(text, encoding="utf-8")
        assert reason in message(tmp_path)
