import os
import sys

import pytest
from images import encode, photo, write_images

from mcbeit.corrupt import CorruptImages
from mcbeit.data import Corrupt
from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, open_source


@pytest.fixture
def source(tmp_path) -> ImageSource:
    """Fifteen files: nobody looks inside."""
    write_images(tmp_path / "photos", {f"{i:02}.png": b"" for i in range(15)})
    return open_source(str(tmp_path / "photos"))


def test_corrupt_images__of_a_good_source_leaves_no_file(source, tmp_path) -> None:
    listed = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=0.0)
    listed.add([])
    assert len(listed) == 0
    assert not (tmp_path / "corrupt.txt").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take unicode names only")
def test_corrupt_images__are_remembered_when_a_run_resumes(tmp_path) -> None:
    latin = os.fsdecode(b"caf\xe9.png")
    write_images(tmp_path / "photos", dict.fromkeys(["a.png", latin, "line\u2028.png", "x.png"], b""))
    source, path = open_source(str(tmp_path / "photos")), tmp_path / "corrupt.txt"
    CorruptImages(source, path, max_fraction=1.0).add([Corrupt(i, "the file is empty") for i in (0, 1, 2)])
    again = CorruptImages(source, path, max_fraction=1.0)
    assert len(again) == 3
    again.add([Corrupt(1, "the file is empty"), Corrupt(2, "another reason"), Corrupt(3, "new"), Corrupt(3, "new")])
    assert len(again) == 4
    assert path.read_bytes().count(b"\n") == 4
    assert b"caf\xe9.png\tthe file is empty\n" in path.read_bytes()


def test_corrupt_images__that_were_mended_or_removed_count_no_more(source, tmp_path) -> None:
    listed = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=1.0)
    listed.add([Corrupt(i, "the file is empty") for i in (3, 5, 14)])
    (tmp_path / "photos" / "05.png").write_bytes(encode(photo(8, 8)))
    (tmp_path / "photos" / "14.png").unlink()
    fewer = open_source(str(tmp_path / "photos"))
    assert len(CorruptImages(fewer, tmp_path / "corrupt.txt", max_fraction=1.0)) == 1
    assert (tmp_path / "corrupt.txt").read_text() == f"{tmp_path}/photos/03.png\tthe file is empty\n"


def test_corrupt_images__too_many_stop_the_run(source, tmp_path) -> None:
    listed = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=0.14)
    listed.add([Corrupt(12, "a"), Corrupt(13, "b"), Corrupt(12, "a")])  # 2 of 15 are 13 %
    with pytest.raises(DataError) as error:
        listed.add([Corrupt(14, "c")])
    assert str(error.value) == (
        "3 of 15 images cannot be read, more than data.max_corrupt_fraction=0.14 allows; the list with reasons is "
        f"{tmp_path}/corrupt.txt, the last one is '{tmp_path}/photos/14.png'. "
        "Mend these files or allow a larger fraction, and go on with --resume; or remove them and start another run"
    )
    assert (tmp_path / "corrupt.txt").read_text().count("\n") == 3
