import json
import pickle
import tarfile
from pathlib import Path

import pytest
from shards import cut, damage, header_of, pictures, write_tar

from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, open_source, source_notes


def names(source: ImageSource) -> list[str]:
    """Without the folder of the shards."""
    return [source.name(i).rpartition("/shards/")[2] for i in range(len(source))]


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def message(place: object, kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        open_source(place, kind)
    return str(error.value)


def write_shards(folder: Path, count: int = 3, each: int = 4) -> dict[str, bytes]:
    """`count` tar files of `each` images in folder/shards; all images in order."""
    images = pictures(count * each)
    files = list(images.items())
    for i in range(count):
        write_tar(folder / "shards" / f"s-{i:03}.tar", dict(files[i * each : (i + 1) * each]))
    return images


def test_open_tar__is_every_image_in_the_order_of_shards_and_members(tmp_path) -> None:
    images = write_shards(tmp_path)
    for place in ("shards", "shards/s-{000..002}.tar", "shards/*.tar", "shards/s-00[0-2].tar"):
        source = open_source(str(tmp_path / place))
        assert contents(source) == list(images.values())
        assert names(source)[:5] == [*(f"s-000.tar:{i:03}.png" for i in range(4)), "s-001.tar:004.png"]
        assert source.labels is None
        assert source_notes(source) == []


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_open_tar__takes_long_and_odd_names(layout: int, tmp_path) -> None:
    images = {f"{'deep/' * 40}{'x' * 150} Köln 日本.png": b"1", "a b.JPG": b"2"}
    source = open_source(str(write_tar(tmp_path / "shards" / "s.tar", images, format=layout)))
    assert contents(source) == [b"1", b"2"]
    assert names(source) == [f"s.tar:{name}" for name in images]


def test_open_tar__takes_webdataset_samples(tmp_path) -> None:
    members = {
        "a/1.cls": b"3\n",
        "a/1.jpg": b"first",
        "a/1.seg.png": b"a mask",
        "a/1.txt": b"a caption",
        "a/2.json": json.dumps({"label": 0, "url": "http://x/2.jpg"}).encode(),
        "a/2.png": b"second",
        "a/2.webp": b"the same again",
        "b/2.cls": b"1",
        "b/2.left.png": b"third",
        "b/2.right.png": b"fourth",
    }
    source = open_source(str(write_tar(tmp_path / "s.tar", members)))
    assert contents(source) == [b"first", b"second", b"third", b"fourth"]
    assert source.labels.tolist() == [3, 0, 1, 1]
    assert source.classes == ["0", "1", "2", "3"]
    assert source_notes(source) == ["3 files of other kinds are passed over: 2 x further images of a sample, 1 x .txt"]


def test_open_tar__numbers_labels_that_are_words(tmp_path) -> None:
    members = {"1.jpg": b"", "1.cls": b"zebra", "2.jpg": b"", "2.json": b'{"label": "ant"}'}
    source = open_source(str(write_tar(tmp_path / "s.tar", members)))
    assert source.classes == ["ant", "zebra"]
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize("second", [{}, {"2.cls": b"-1"}, {"2.json": b"{broken"}, {"2.json": b"[1]"}, {"2.cls": b" "}])
def test_open_tar__labels_of_some_are_labels_of_none(second: dict[str, bytes], tmp_path) -> None:
    members = {"1.jpg": b"", "1.cls": b"0", "2.jpg": b"", **second}
    source = open_source(str(write_tar(tmp_path / "s.tar", members)))
    assert source.labels is None
    assert source.classes == []
    assert "1 of 2 samples" in source_notes(source)[0]


def test_open_tar__refuses_a_label_that_no_class_has(tmp_path) -> None:
    path = write_tar(tmp_path / "s.tar", {"1.jpg": b"", "1.cls": b"12345678"})
    assert "has the label 12345678; number the classes from 0 on" in message(str(path))


def test_open_tar__passes_over_hidden_files_links_and_folders(tmp_path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in {"dir": tarfile.DIRTYPE, "l.png": tarfile.SYMTYPE, "._x.png": tarfile.REGTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("x.png"))
    source = open_source(str(path))
    assert len(source) == 1
    assert source.passed_over == {"links and the like": 1, "hidden": 1}


# damage


def test_open_tar__uses_what_comes_before_the_end_of_a_truncated_shard(tmp_path) -> None:
    images = write_shards(tmp_path)
    shard = tmp_path / "shards" / "s-001.tar"
    cut(shard, header_of(shard, "006.png") + 600)
    source = open_source(str(tmp_path / "shards"))
    kept = [name for name in images if name not in ("006.png", "007.png")]
    assert contents(source) == [images[name] for name in kept]
    (damaged,) = source.damaged
    assert damaged.name == str(shard)
    assert damaged.reason.startswith("it ends at byte")
    assert damaged.num_lost == 2
    assert "which loses about 2 images" in source_notes(source)[0]


def test_open_tar__notices_every_kind_of_damage(tmp_path) -> None:
    write_shards(tmp_path, count=6)
    shards = sorted((tmp_path / "shards").iterdir())
    cut(shards[0], 0)
    cut(shards[1], header_of(shards[1], "006.png"))  # between two members
    cut(shards[2], header_of(shards[2], "010.png") + 100)  # within a header
    damage(shards[3], header_of(shards[3], "014.png"))
    shards[4].write_bytes(b"\x1f\x8b" + bytes(2000))
    source = open_source(str(tmp_path / "shards"))
    assert [(Path(name).name, lost) for name, _, lost in source.damaged] == [
        ("s-000.tar", 4), ("s-001.tar", 2), ("s-002.tar", 2), ("s-003.tar", 2), ("s-004.tar", 4),
    ]  # fmt: skip
    assert len(source) == 2 + 2 + 2 + 4
    assert "is corrupt" in source.damaged[3].reason


def test_open_tar__an_incomplete_last_sample_does_not_take_the_labels_of_all(tmp_path) -> None:
    members = {"1.jpg": b"1", "1.cls": b"0", "2.jpg": b"2", "2.cls": b"1"}
    for name, end in (("a", "2.cls"), ("b", "1.cls")):
        path = write_tar(tmp_path / f"{name}.tar", members)
        cut(path, header_of(path, end))
    source = open_source(str(tmp_path))
    assert contents(source) == [b"1"]
    assert source.labels.tolist() == [0]
    assert len(source.damaged) == 2


def test_open_tar__without_any_image_is_an_error(tmp_path) -> None:
    assert "(found 1 x .txt)" in message(str(write_tar(tmp_path / "s.tar", {"a.txt": b"x"})))
    assert "(found no files at all)" in message(str(write_tar(tmp_path / "empty.tar", {})))
    (tmp_path / "text.tar").write_text("not a tar file" * 100)
    assert "text.tar': no plain tar file, or truncated" in message(str(tmp_path / "text.tar"))
    (tmp_path / "empty").mkdir()
    assert message(str(tmp_path / "empty"), "tar").startswith("there is no .tar file below")


def test_open_tar__refuses_missing_and_compressed_shards(tmp_path) -> None:
    write_shards(tmp_path)
    assert "no image source at" in message(str(tmp_path / "shards" / "s-{000..004}.tar"))
    assert message(str(tmp_path / "shards" / "t-*.tar")).startswith("nothing matches")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    assert "compressed as a whole" in message(str(tmp_path / "a.tar.gz"))


def test_read__of_a_shard_that_changed_is_an_os_error(tmp_path) -> None:
    write_shards(tmp_path)
    source = open_source(str(tmp_path / "shards"))
    write_tar(tmp_path / "shards" / "s-000.tar", {"x.png": b"shorter"})
    with pytest.raises(OSError, match="has changed since it was opened"):
        source.read(0)
    assert source.read(4)
    (tmp_path / "shards" / "s-002.tar").unlink()
    with pytest.raises(FileNotFoundError):
        source.read(8)


# what a run knows it by


def test_summary__of_shards_is_that_of_names_and_order(tmp_path) -> None:
    write_shards(tmp_path)
    before = open_source(str(tmp_path / "shards")).summary()
    assert before["images"] == 12
    (tmp_path / "shards").rename(tmp_path / "moved")
    assert open_source(str(tmp_path / "moved")).summary() == before
    (tmp_path / "moved" / "s-000.tar").rename(tmp_path / "moved" / "s-003.tar")
    assert open_source(str(tmp_path / "moved")).summary() != before


def test_pickle__holds_no_handles_and_reads_the_same(tmp_path) -> None:
    images = write_shards(tmp_path)
    source = open_source(str(tmp_path / "shards"))
    source.read(0)
    packed = pickle.dumps(source)
    assert len(packed) < 2500
    assert contents(pickle.loads(packed)) == list(images.values())


def test_open_source__joins_shards_and_folders(tmp_path) -> None:
    images = write_shards(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.png").write_bytes(b"more")
    source = open_source([str(tmp_path / "more"), str(tmp_path / "shards" / "s-000.tar")])
    assert contents(source) == [b"more", *list(images.values())[:4]]
    assert len(open_source(str(tmp_path / "*"))) == 13


def test_open_source__a_folder_with_images_is_one_of_images(tmp_path) -> None:
    write_shards(tmp_path)
    (tmp_path / "shards" / "x.png").write_bytes(b"loose")
    source = open_source(str(tmp_path / "shards"))
    assert contents(source) == [b"loose"]
    assert source.passed_over == {".tar": 3}
    assert len(open_source(str(tmp_path / "shards"), "tar")) == 12
