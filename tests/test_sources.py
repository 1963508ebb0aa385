import os
import sys
from pathlib import Path

import numpy as np
import pytest
from images import write_images

from mcbeit.errors import DataError
from mcbeit.prepare import DATA_SETS
from mcbeit.sources import PREPARED, SUFFIXES, ImageSource, open_source, source_notes


def make(root: Path, *paths: str) -> Path:
    """Files below root, each holding its own relative path: a source never looks inside them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path))
    return root


def write_list(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def contents(source: ImageSource) -> list[str]:
    """What the files hold, in the source's order."""
    return [os.fsdecode(source.read(i)) for i in range(len(source))]


def message(location: object, kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        open_source(location, kind)
    return str(error.value)


# a folder


def test_open_source__a_folder_is_every_image_below_it_in_sorted_order(tmp_path) -> None:
    make(tmp_path, "b.png", "a.JPG", "trip to Köln/tag 2/日本.webp", "trip to Köln/z.gif", "trip/deep/er/x.jpeg")
    source = open_source(str(tmp_path))
    wanted = ["a.JPG", "b.png", "trip/deep/er/x.jpeg", "trip to Köln/z.gif", "trip to Köln/tag 2/日本.webp"]
    assert contents(source) == wanted
    assert wanted == [str(Path(source.name(i)).relative_to(tmp_path)) for i in range(len(source))]
    assert wanted == contents(open_source(str(tmp_path), "folder"))
    assert source.labels is None
    assert source.classes == []


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_open_source__a_folder_takes_every_suffix_in_any_case(suffix: str, tmp_path) -> None:
    make(tmp_path, f"one{suffix}", f"TWO{suffix.upper()}", f"x{suffix}.part", suffix[1:])
    assert contents(open_source(str(tmp_path))) == [f"TWO{suffix.upper()}", f"one{suffix}"]


def test_open_source__the_order_is_that_of_names_not_of_the_disk(tmp_path) -> None:
    names = [f"{i:02}.png" for i in range(30)]
    make(tmp_path, *np.random.default_rng(0).permutation(names))
    assert contents(open_source(str(tmp_path))) == names


def test_open_source__passes_over_hidden_files_and_folders(tmp_path) -> None:
    make(tmp_path, "seen.png", ".hidden.png", "._seen.png", ".cache/x.png", "a/.git/x.png", "a/b.txt", "a/Thumbs.db")
    assert contents(open_source(str(tmp_path))) == ["seen.png"]


def test_open_source__a_hidden_folder_may_be_asked_for_by_name(tmp_path) -> None:
    make(tmp_path / ".cache", "x.png")
    assert len(open_source(str(tmp_path / ".cache"))) == 1


def test_open_source__follows_links_and_visits_each_folder_once(tmp_path) -> None:
    make(tmp_path / "photos", "a/1.png", "b/2.png")
    make(tmp_path / "elsewhere", "3.png", "deep/4.png")
    (tmp_path / "photos" / "a" / "back").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "b" / "again").symlink_to(tmp_path / "photos" / "a")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "5.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    (tmp_path / "photos" / "nowhere").symlink_to(tmp_path / "missing")
    source = open_source(str(tmp_path / "photos"))
    assert contents(source) == ["3.png", "a/1.png", "b/2.png", "3.png", "deep/4.png"]
    assert source.name(3) == str(tmp_path / "photos" / "linked" / "3.png")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take unicode names only")
def test_open_source__takes_names_that_are_no_unicode(tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    make(tmp_path, name)
    assert contents(open_source(str(tmp_path))) == [name]


def test_open_source__expands_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(make(tmp_path, "photos/x.png")))
    assert contents(open_source("~/photos")) == ["photos/x.png"]
    assert contents(open_source(["~/photos"])) == ["photos/x.png"]


def test_read__of_a_file_that_went_away_is_an_os_error(tmp_path) -> None:
    source = open_source(str(make(tmp_path, "x.png")))
    (tmp_path / "x.png").unlink()
    with pytest.raises(OSError, match=r"x\.png"):
        source.read(0)


# an ImageFolder


def test_open_source__an_imagefolder_has_the_first_folder_as_label(tmp_path) -> None:
    make(tmp_path, "zebra/1.png", "zebra/more/2.png", "Ant hill/3.png", "emu/4.png", "notes.txt", "empty/x.txt")
    source = open_source(str(tmp_path), "imagefolder")
    assert source.classes == ["Ant hill", "emu", "zebra"]
    assert contents(source) == ["Ant hill/3.png", "emu/4.png", "zebra/1.png", "zebra/more/2.png"]
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert source.labels.dtype == np.int64


def test_open_source__an_imagefolder_has_no_loose_images(tmp_path) -> None:
    make(tmp_path, "ant/1.png", "x.png", "y.png")
    assert message(str(tmp_path), "imagefolder") == (
        f"'{tmp_path}' is not an ImageFolder: 2 images lie directly in it, such as 'x.png'; "
        "put each into the folder of its class, or use the kind folder for images without labels"
    )


# a list file


def test_open_source__the_official_list_lies_beside_its_folder(tmp_path) -> None:
    make(tmp_path / "train", "n01/a b.JPEG", "n02/c.JPEG")
    make(tmp_path, "n01/a b.JPEG")  # not this one
    source = open_source(write_list(tmp_path / "train_map.txt", "n02/c.JPEG 3", "n01/a b.JPEG 0", ""))
    assert [source.name(i) for i in range(2)] == [
        str(tmp_path / "train/n02/c.JPEG"),
        str(tmp_path / "train/n01/a b.JPEG"),
    ]
    assert source.labels.tolist() == [3, 0]  # in the order of the list
    assert source.classes == ["0", "1", "2", "3"]


def test_open_source__a_list_without_such_a_folder_is_relative_to_itself(tmp_path) -> None:
    make(tmp_path, "n01/a.png")
    for name in ("val_map.txt", "mine.txt", "n01.txt"):
        assert contents(open_source(write_list(tmp_path / name, "n01/a.png 0"))) == ["n01/a.png"]


def test_open_source__a_list_may_leave_labels_out(tmp_path) -> None:
    make(tmp_path, "my photo 3.jpg", "x.png", "x.png 7")
    source = open_source(write_list(tmp_path / "list.txt", "my photo 3.jpg", f"  {tmp_path / 'x.png'}  "), "list")
    assert contents(source) == ["my photo 3.jpg", "x.png"]
    assert source.labels is None
    assert source.classes == []


def test_open_source__a_list_may_come_from_windows_and_use_tabs(tmp_path) -> None:
    make(tmp_path, "a b.png", "c.png")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa b.png\t1\r\n\r\nc.png  \t 0")
    source = open_source(str(tmp_path / "list.txt"))
    assert contents(source) == ["a b.png", "c.png"]
    assert source.labels.tolist() == [1, 0]


def test_open_source__a_list_ends_a_name_at_the_end_of_the_line_only(tmp_path) -> None:
    make(tmp_path, "a\u2028b.png", "c\x0bd.png")
    assert len(open_source(write_list(tmp_path / "list.txt", "a\u2028b.png", "c\x0bd.png"))) == 2


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["x.png 0", "y.png", "z.png"], "has 1 lines with a label and 2 without, such as 'y.png'"),
        (["x.png 0", "y.png cat"], "has 1 lines with a label and 1 without, such as 'y.png cat'"),
        (["x.png cat", "y.png cat"], "2 of 2 are missing, the first is 'x.png cat'"),
        (["x.png -1"], "1 of 1 are missing, the first is 'x.png -1'"),
        (["x.png ²"], "1 of 1 are missing, the first is 'x.png ²'"),
        (["x.png 0", "gone/a.png 1", "b.png 1"], "2 of 3 are missing, the first is 'gone/a.png'"),
        (["folder"], "1 of 1 are missing, the first is 'folder'"),
        ([], "names no image; it needs one 'relative/path label' per line"),
        (["", "   "], "names no image"),
        (["{" + "1," * 5000 + "}"], "1 of 1 are missing, the first is '{1,1,"),
    ],
)
def test_open_source__refuses_a_list_that_is_wrong(lines: list[str], wanted: str, tmp_path) -> None:
    make(tmp_path, "x.png", "y.png", "z.png", "folder/x.png")
    found = message(write_list(tmp_path / "list.txt", *lines))
    assert wanted in found
    assert str(tmp_path / "list.txt") in found
    assert len(found) < 500


def test_open_source__a_picture_is_no_list(tmp_path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert message(str(tmp_path / "x.png")).endswith(
        "x.png' is one image; name the folder that it lies in, or a list file that names it"
    )


# several sources


def test_open_source__several_are_read_one_after_the_other(tmp_path) -> None:
    make(tmp_path / "a", "1.png", "2.png")
    make(tmp_path / "b", "3.png")
    make(tmp_path / "c", "4.png", "5.png")
    listed = write_list(tmp_path / "c" / "list.txt", "5.png", "4.png")
    source = open_source([str(tmp_path / "a"), str(tmp_path / "b"), listed])
    assert len(source) == 5
    assert contents(source) == ["1.png", "2.png", "3.png", "5.png", "4.png"]
    assert source.name(2) == str(tmp_path / "b" / "3.png")
    assert source.labels is None


def test_open_source__several_are_labelled_by_class_name(tmp_path) -> None:
    make(tmp_path / "a", "dog/1.png", "emu/2.png")
    make(tmp_path / "b", "ant/3.png", "emu/4.png")
    source = open_source([str(tmp_path / "a"), str(tmp_path / "b")], "imagefolder")
    assert source.classes == ["ant", "dog", "emu"]
    assert [source.classes[label] for label in source.labels] == ["dog", "emu", "ant", "emu"]


def test_open_source__several_are_labelled_only_if_all_are(tmp_path) -> None:
    make(tmp_path, "1.png")
    lists = [write_list(tmp_path / "a.txt", "1.png 0"), write_list(tmp_path / "b.txt", "1.png")]
    assert open_source([lists[0], lists[0]]).labels.tolist() == [0, 0]
    source = open_source(lists)
    assert source.labels is None
    assert source.classes == []


def test_open_source__one_in_a_list_is_that_one(tmp_path) -> None:
    make(tmp_path, "emu/2.png")
    assert open_source([str(tmp_path)], "imagefolder").labels.tolist() == [0]


# refusals


def test_open_source__names_what_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message("photos") == f"there is no image source at 'photos' (looked from {tmp_path})"
    assert "there is no image source at 'photos'" in message([str(make(tmp_path / "a", "1.png")), "photos"])
    assert message([]) == "the list of image sources is empty; name at least one folder or list file"


def test_open_source__tells_how_to_make_what_the_presets_want(tmp_path) -> None:
    assert set(PREPARED) == set(DATA_SETS)
    for place in ("emoji/train", "emoji-coco-agnostic/val2017", "emoji-ade/images/training"):
        name = place.split("/")[0]
        assert message(str(tmp_path / "data" / place)).endswith(
            f"make it: mcbeit data prepare {name} {tmp_path}/data/{name}"
        )
    for other in ("mine/train", "emoji/mine", "emoji"):
        assert "make it" not in message(str(tmp_path / "data" / other))


def test_open_source__auto_takes_a_folder_as_it_is_told(tmp_path) -> None:
    write_images(tmp_path / "a", {"x.png": b""})
    assert open_source(str(tmp_path)).labels is None
    labels = open_source(str(tmp_path), folders="imagefolder").labels
    assert labels is not None
    assert labels.tolist() == [0]


def test_summary__changes_with_names_and_not_with_the_place(tmp_path) -> None:
    for place in ("one", "two"):
        write_images(tmp_path / place, {"x.png": b"", "y.png": b""})
    one, two = (open_source(str(tmp_path / place)) for place in ("one", "two"))
    assert one.summary() == two.summary()
    assert one.summary()["images"] == 2
    both = open_source([str(tmp_path / "one"), str(tmp_path / "two")]).summary()
    assert both["images"] == 4
    (tmp_path / "two" / "y.png").rename(tmp_path / "two" / "z.png")
    assert open_source(str(tmp_path / "two")).summary() != one.summary()
    assert open_source([str(tmp_path / "one"), str(tmp_path / "two")]).summary() != both


@pytest.mark.parametrize("kind", ["folder", "imagefolder"])
def test_open_source__says_what_a_folder_without_images_holds(kind: str, tmp_path) -> None:
    suffixes = "image files end in .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp"
    assert message(str(tmp_path), kind) == f"there is no image below '{tmp_path}' (found no files at all); {suffixes}"
    make(tmp_path, "1.heic", "b/2.HEIC", "b/3.mp4", "README", ".x.png", ".y.png", ".DS_Store")
    found = "found 3 x hidden, 2 x .heic, 1 x README, 1 x .mp4"
    assert message(str(tmp_path), kind) == f"there is no image below '{tmp_path}' ({found}); {suffixes}"


def test_open_source__says_which_kind_fits(tmp_path) -> None:
    make(tmp_path, "1.png")
    listed = write_list(tmp_path / "list.txt", "1.png")
    assert "is a folder, but a list file was asked for; use the kind folder or imagefolder" in message(
        str(tmp_path), "list"
    )
    for kind in ("folder", "imagefolder"):
        assert "is a file, but a folder of images was asked for; use the kind list" in message(listed, kind)


def test_open_folder__counts_what_it_passes_over(tmp_path) -> None:
    write_images(tmp_path / "a", {"x.png": b"", "y.heic": b"", "z.heic": b"", ".hidden": b""})
    source = open_source(str(tmp_path))
    assert source_notes(source) == ["3 files of other kinds are passed over: 2 x .heic, 1 x hidden"]
    write_images(tmp_path / "b", {"x.png": b"", "y.heic": b""})
    assert open_source([str(tmp_path / "a"), str(tmp_path / "b")]).passed_over == {".heic": 3, "hidden": 1}
    (tmp_path / "b" / "y.heic").unlink()
    assert source_notes(open_source(str(tmp_path / "b"))) == []


def test_open_folder__refuses_a_folder_that_it_may_not_read(tmp_path, monkeypatch) -> None:
    write_images(tmp_path / "a", {"x.png": b""})
    write_images(tmp_path / "secret", {"y.png": b""})
    scandir = os.scandir

    def refuse(path: str) -> object:  # the tests may run as root, who may read everything
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert message(str(tmp_path)) == (
        f"the folder '{tmp_path}/secret' cannot be read: Permission denied; change its permissions or move it"
    )


def test_open_list__refuses_a_label_that_no_class_has(tmp_path) -> None:
    write_images(tmp_path, {"x.png": b""})
    (tmp_path / "list.txt").write_text("x.png 99999999999\n")
    assert "has the label 99999999999; number the classes from 0 on" in message(str(tmp_path / "list.txt"))


def test_joined_source__keeps_the_numbers_of_numbered_classes(tmp_path) -> None:
    write_images(tmp_path, {f"{i}.png": b"" for i in range(12)})
    for name, labels in (("a", range(12)), ("b", (2, 11))):
        (tmp_path / f"{name}.txt").write_text("".join(f"{i}.png {i}\n" for i in labels))
    both = open_source([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert both.classes == [str(i) for i in range(12)]
    assert both.labels is not None
    assert both.labels.tolist() == [*range(12), 2, 11]
