import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from images import encode, photo, write_images
from shards import cut, header_of, pictures, write_parquet, write_tar
from tiny import write_planes

from mcbeit.check import SHOWN, Check, check_source, describe
from mcbeit.cli.main import cli
from mcbeit.config import validate
from mcbeit.data import DataConfig


def check(source: Path, *, pixels: bool = False, **options: Any) -> Check:
    values = {"source": str(source), "num_workers": 0, **options}
    return check_source(validate(DataConfig, values), pixels=pixels)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["data", "check", *arguments])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes; a copy within one and across both, the same pixels in another format, and a broken file."""
    ant = {"1.png": encode(photo(20, 30)), "2.jpg": encode(photo(40, 40, seed=1), "jpg"), "copy.png": b"", "t.txt": b""}
    ant["copy.png"] = ant["1.png"]
    bee = {"1.webp": encode(photo(20, 30), "webp", lossless=True), "2.jpg": ant["2.jpg"], "bad.png": ant["1.png"][:99]}
    write_images(tmp_path / "images" / "ant", ant)
    write_images(tmp_path / "images" / "bee", bee)
    return tmp_path / "images"


def test_check_source__counts_everything(folder: Path) -> None:
    found = check(folder, kind="imagefolder", max_corrupt_fraction=0.2)
    assert (found.num_images, found.num_readable, found.num_lost) == (6, 5, 0)
    assert found.num_bytes == sum(path.stat().st_size for path in folder.rglob("*.*") if path.suffix != ".txt")
    assert found.formats == {"PNG": 2, "JPEG": 2, "WEBP": 1}
    assert found.sizes == {"smallest": [30, 20], "median": [30, 20], "largest": [40, 40]}
    assert found.classes == {"ant": 3, "bee": 3}
    assert found.passed_over == {".txt": 1}
    (bad,) = found.corrupt
    assert bad["name"] == str(folder / "bee" / "bad.png")
    assert bad["reason"] == "the PNG data is truncated or corrupt"
    assert found.corrupt_fraction == pytest.approx(1 / 6)
    assert found.is_usable


def test_check_source__finds_duplicates(folder: Path) -> None:
    found = check(folder, kind="imagefolder", pixels=True)
    one, copy, two = (str(folder / name) for name in ("ant/1.png", "ant/copy.png", "ant/2.jpg"))
    assert found.same_bytes == [[one, copy], [two, str(folder / "bee" / "2.jpg")]]
    assert found.same_pixels == [[one, copy, str(folder / "bee" / "1.webp")]]
    assert found.num_conflicting == 2
    assert check(folder).same_pixels is None
    assert check(folder).num_conflicting == 0


def test_check_source__tells_turned_pictures_apart(tmp_path) -> None:
    """The same values in another shape are another image."""
    write_images(tmp_path, {"a.png": encode(np.zeros((4, 6), np.uint8)), "b.png": encode(np.zeros((6, 4), np.uint8))})
    assert check(tmp_path, pixels=True).same_pixels == []


def test_check_source__of_shards_weighs_the_damaged_ones(tmp_path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", pictures(4))
    cut(tmp_path / "b.tar", header_of(tmp_path / "b.tar", "001.png"))
    found = check(tmp_path)
    assert (found.num_images, found.num_lost) == (5, 3)
    assert found.damaged[0]["name"] == str(tmp_path / "b.tar")
    assert found.corrupt_fraction == 3 / 8
    assert not found.is_usable
    assert found.same_bytes == [[f"{tmp_path}/a.tar:000.png", f"{tmp_path}/b.tar:000.png"]]


def test_check_source__of_parquet_and_of_channels(tmp_path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [*pictures(3).values(), None], labels=[0, 1, 1, 0])
    found = check(path, num_workers=2)
    assert (found.num_readable, found.classes) == (3, {"0": 2, "1": 2})
    assert found.corrupt == [{"name": f"{path}:3", "reason": "the row has neither the bytes nor the path of an image"}]
    found = check(write_planes(tmp_path / "planes", count=8), channels=5)
    assert (found.num_readable, found.formats) == (8, {"NPY": 4, "TIFF": 4})
    assert check(tmp_path / "planes", channels=4, max_corrupt_fraction=1).num_readable == 0


def test_describe__tells_it_to_a_person(folder: Path) -> None:
    lines = list(describe(check(folder, kind="imagefolder", pixels=True)))
    assert lines[0].startswith("6 images, 5 of them readable, 0.0 MB")
    assert "sizes: smallest 30 x 20, median 30 x 20, largest 40 x 40" in lines
    assert "labels: 2 classes of 3 images" in lines
    assert "passed over: 1 x .txt" in lines
    assert "corrupt: 1" in lines
    assert "same bytes: 2" in lines
    assert f"  {folder}/ant/2.jpg = {folder}/bee/2.jpg" in lines
    assert "duplicates with several labels: 2" in lines
    assert lines[-1] == "not usable: 16.67% cannot be read, data.max_corrupt_fraction allows 1.00%"


def test_describe__shows_the_first_of_many(tmp_path) -> None:
    write_images(tmp_path, {"a.png": encode(photo()), **{f"{i:02}.png": b"" for i in range(SHOWN + 5)}})
    lines = list(describe(check(tmp_path)))
    assert f"corrupt: {SHOWN + 5}" in lines
    assert "  ... and 5 more; --json lists all" in lines
    assert "labels: none" in lines
    assert "same bytes: none" in lines


def test_data_check__prints_to_stdout_and_exits_by_what_it_found(folder: Path) -> None:
    options = ["data.kind=imagefolder", "data.num_workers=0"]
    result = run(str(folder), *options)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith("6 images")
    assert "check 6/6" in result.stderr
    assert "check" not in result.stdout.split()[:2]
    result = run(str(folder), *options, "data.max_corrupt_fraction=0.5", "--json", "--pixels")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert (found["usable"], found["num_images"], len(found["same_pixels"])) == (True, 6, 1)


def test_data_check__refuses_what_is_no_source_and_no_key(tmp_path) -> None:
    assert run(str(tmp_path / "nowhere")).exit_code == 2
    result = run(str(tmp_path), "data.knid=list")
    assert result.exit_code == 2
    assert "unknown key 'data.knid'; did you mean 'data.kind'?" in result.stderr
