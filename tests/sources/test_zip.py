import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shards import cut, damage, pictures

from mcbeit.errors import DataError
from mcbeit.sources.zip import ZipSource, open_zip_list

IMAGES = pictures(6)
DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def write_zip(folder: Path, how: int = DEFLATED, prefix: str = "") -> Path:
    with zipfile.ZipFile(folder / "val.zip", "w", how) as archive:
        for name, data in IMAGES.items():
            archive.writestr(prefix + name, data)
    (folder / "val_map.txt").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(IMAGES)), encoding="utf-8")
    return folder


def opened(folder: Path) -> ZipSource:
    return open_zip_list(str(folder / "val_map.txt"), str(folder / "val.zip"))


def message(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(folder)
    return str(error.value)


@pytest.mark.parametrize("how", [DEFLATED, STORED])
@pytest.mark.parametrize("prefix", ["", "val/"])
def test_open_zip_list__is_the_images_in_the_order_of_the_list(how: int, prefix: str, tmp_path: Path) -> None:
    source = opened(write_zip(tmp_path, how, prefix))
    assert [source.read(i) for i in range(len(source))] == list(IMAGES.values())
    assert source.name(1) == f"{tmp_path}/val.zip:{prefix}001.png"
    assert source.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert source.classes == ["0", "1"]


def test_open_zip_list__takes_some_images_in_another_order(tmp_path: Path) -> None:
    write_zip(tmp_path)
    (tmp_path / "val_map.txt").write_text("004.png 1\n001.png 0\n", encoding="utf-8")
    source = opened(tmp_path)
    assert [source.read(i) for i in range(2)] == [IMAGES["004.png"], IMAGES["001.png"]]
    assert source.summary()["images"] == 2


def test_open_zip_list__takes_a_zip_file_behind_something_else(tmp_path: Path) -> None:
    """As self-extracting ones are; places in them are not those that they tell."""
    path = write_zip(tmp_path) / "val.zip"
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert opened(tmp_path).read(2) == IMAGES["002.png"]


def test_read__from_many_threads_and_after_pickling(tmp_path: Path) -> None:
    source = opened(write_zip(tmp_path))
    source.read(0)
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(again.read, [5, 0, 3] * 20)) == [IMAGES[f"00{i}.png"] for i in [5, 0, 3] * 20]


def test_summary__is_by_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = opened(write_zip(tmp_path / "a", STORED))
    assert opened(write_zip(tmp_path / "b", DEFLATED)).summary() == first.summary()
    assert opened(write_zip(tmp_path / "b", DEFLATED, "val/")).summary() != first.summary()


@pytest.mark.parametrize("how", [DEFLATED, STORED])
def test_read__of_a_corrupt_member_is_an_os_error(how: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path, how) / "val.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("002.png").header_offset
    damage(path, start + 100)
    source = opened(tmp_path)
    with pytest.raises(OSError, match="corrupt"):
        source.read(2)
    assert source.read(3) == IMAGES["003.png"]
    damage(path, start, 4)
    with pytest.raises(OSError, match=f"has no member at byte {start}"):
        opened(tmp_path).read(2)


def test_read__of_a_zip_file_that_changed_is_an_os_error(tmp_path: Path) -> None:
    source = opened(write_zip(tmp_path))
    with zipfile.ZipFile(tmp_path / "val.zip", "a") as archive:
        archive.writestr("more", b"")
    with pytest.raises(OSError, match="has changed since it was opened"):
        source.read(0)


def test_read__does_not_unpack_more_than_was_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "val.zip", "w", DEFLATED) as archive:
        archive.writestr("x.png", bytes(10**6))
    (tmp_path / "val_map.txt").write_text("x.png 0\n", encoding="utf-8")
    source = opened(tmp_path)
    source._sizes[0] = 10
    with pytest.raises(OSError, match="corrupt"):
        source.read(0)


def test_open_zip_list__refuses_what_it_cannot_read(tmp_path: Path) -> None:
    write_zip(tmp_path, zipfile.ZIP_BZIP2)
    assert message(tmp_path).endswith("val.zip:000.png' is encrypted or packed in an unusual way; pack it again")
    path = write_zip(tmp_path) / "val.zip"
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # in the directory, where the flags of the first member are
    path.write_bytes(data)
    assert "is encrypted" in message(tmp_path)
    cut(path, 500)
    assert "val.zip' cannot be read: File is not a zip file; is its download complete?" in message(tmp_path)
    path.unlink()
    assert "val.zip' cannot be read: " in message(tmp_path)


def test_open_zip_list__names_an_image_that_is_not_there(tmp_path: Path) -> None:
    write_zip(tmp_path)
    with (tmp_path / "val_map.txt").open("a", encoding="utf-8") as file:
        file.write("x.png 1\n")
    assert message(tmp_path).endswith("1 of 7 images are not in it, the first is 'x.png'")
