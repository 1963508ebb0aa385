import sys
import zipfile
from pathlib import Path

import fsspec
import pytest
from shards import pictures, write_parquet, write_tar

from mcbeit.errors import DataError
from mcbeit.sources import ImageSource, location, open_source, remote


@pytest.fixture(autouse=True)
def memory():
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()


def contents(source: ImageSource) -> list[bytes]:
    return [source.read(i) for i in range(len(source))]


def message(place: object, kind: str = "auto") -> str:
    with pytest.raises(DataError) as error:
        open_source(place, kind)
    return str(error.value)


# braces and wildcards


def test_expand__counts_and_lists() -> None:
    assert location.expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert location.expand("{2..0}/{x,y}") == ["2/x", "2/y", "1/x", "1/y", "0/x", "0/y"]
    assert location.expand("s3://b/{0..1}.tar") == ["s3://b/0.tar", "s3://b/1.tar"]
    assert location.expand("{one}") == ["one"]
    assert location.expand("https://x/y.tar?a=b") == ["https://x/y.tar?a=b"]


def test_expand__takes_a_name_that_exists_as_it_is(tmp_path) -> None:
    for name in ("a{0..9}", "b[1]", "b1"):
        (tmp_path / name).mkdir()
    assert location.expand(str(tmp_path / "a{0..9}")) == [str(tmp_path / "a{0..9}")]
    assert location.expand(str(tmp_path / "b[1]")) == [str(tmp_path / "b[1]")]
    assert location.expand(str(tmp_path / "b?")) == [str(tmp_path / "b1")]


def test_expand__refuses_what_matches_nothing_or_too_much(tmp_path) -> None:
    with pytest.raises(DataError, match="nothing matches"):
        location.expand(str(tmp_path / "*.tar"))
    for name in ("{0..9999999}", "{0..999}{0..999}{0..9}"):
        with pytest.raises(DataError, match="stands for more than 100000 names"):
            location.expand(name)


def test_names__are_of_what_lies_directly_in_a_folder(tmp_path, memory) -> None:
    for name in ("b/c.png", "a.png", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        memory.pipe(f"/folder/{name}", b"")
    assert location.names(str(tmp_path)) == location.names("memory://folder") == ["a.png", "b"]
    assert location.describe(str(tmp_path)) == "found a.png, b"
    for i in range(10):
        (tmp_path / f"c{i}").mkdir()
    assert location.describe(str(tmp_path)) == "found a.png, b, c0, c1, c2, c3, c4, c5 and 4 more"
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        location.names(str(tmp_path / "a.png"))


# URLs


def test_open_source__reads_a_folder_behind_a_url_as_one_on_disk(memory, tmp_path) -> None:
    names = ["b.png", "a/z.png", "a/2/x.png", "c/y.png", ".hidden/x.png", "notes.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        memory.pipe(f"/photos/{name}", name.encode())
    wanted = contents(open_source(str(tmp_path)))
    for url in ("memory://photos", f"file://{tmp_path}"):
        source = open_source(url)
        assert contents(source) == wanted
        assert source.summary() == open_source(str(tmp_path)).summary()
    assert open_source("memory://photos").name(0) == "memory://photos/b.png"
    memory.rm("/photos/b.png")
    labelled = open_source("memory://photos", "imagefolder")
    assert (labelled.classes, labelled.labels.tolist()) == (["a", "c"], [0, 0, 1])


def test_open_source__reads_tars_behind_a_url(memory, tmp_path) -> None:
    images = pictures(4)
    for i in range(2):
        path = write_tar(tmp_path / f"{i}.tar", dict(list(images.items())[2 * i : 2 * i + 2]))
        memory.pipe(f"/shards/{i}.tar", path.read_bytes())
    for url in ("memory://shards", "memory://shards/*.tar", "memory://shards/{0..1}.tar", f"file://{tmp_path}"):
        assert contents(open_source(url)) == list(images.values())
    memory.pipe("/shards/1.tar", path.read_bytes()[:1500])
    source = open_source("memory://shards")
    assert len(source) == 3 - (len(images["002.png"]) > 988)
    assert source.damaged[0].name == "memory://shards/1.tar"


def test_open_source__reads_parquet_behind_a_url(memory, tmp_path) -> None:
    images = list(pictures(6).values())
    path = write_parquet(tmp_path / "x.parquet", [*images[:5], None], paths=[None] * 5 + ["beside.png"])
    memory.pipe("/set/x.parquet", path.read_bytes())
    memory.pipe("/set/beside.png", images[5])
    assert contents(open_source("memory://set/x.parquet")) == images


def test_open_source__reads_a_list_behind_a_url(memory, tmp_path) -> None:
    memory.pipe("/set/a b.png", b"1")
    memory.pipe("/other/c.png", b"2")
    lines = "a b.png 0\nmemory://other/c.png 1\n"
    memory.pipe("/set/list.txt", f"{lines}no.png 0\n".encode())
    source = open_source("memory://set/list.txt")
    assert [source.read(0), source.read(1)] == [b"1", b"2"]
    assert source.labels.tolist() == [0, 1, 0]
    with pytest.raises(OSError, match=r"no\.png"):
        source.read(2)
    (tmp_path / "a b.png").write_bytes(b"here")
    (tmp_path / "list.txt").write_text(lines)
    assert contents(open_source(str(tmp_path / "list.txt"))) == [b"here", b"2"]


def test_open_source__reads_a_zip_file_as_a_folder(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("in/a.png", b"1")
        archive.writestr("b.png", b"2")
    source = open_source(f"zip://::{tmp_path}/x.zip")
    assert contents(source) == [b"2", b"1"]
    assert source.name(1) == f"zip://in/a.png::{tmp_path}/x.zip"
    assert contents(open_source(f"zip://in::{tmp_path}/x.zip")) == [b"1"]


def test_open_source__says_what_a_url_lacks(monkeypatch) -> None:
    for driver in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, driver, None)
    remote._connection.cache_clear()
    assert message("s3://bucket/x.tar").endswith("needs s3fs: pip install s3fs")
    assert message("simplecache::gs://bucket/x.tar").endswith("needs gcsfs: pip install gcsfs")
    assert "is no URL that fsspec can open: Protocol not known: nosuch" in message("nosuch://x")
    assert "cannot be opened" in message("zip://::/no/such/file.zip")
    assert "there is no image source at 'memory://nowhere'" in message("memory://nowhere")
    assert message("memory://nowhere/{0..2}.tar") == "there is no tar file 'memory://nowhere/0.tar'"
    assert message("memory://nowhere/x.parquet") == "there is no parquet file 'memory://nowhere/x.parquet'"
    assert message("memory://nowhere/*.tar").startswith("nothing matches")
    assert "is a pattern in a chain of URLs" in message("zip://*.png::/x.zip")


def test_read__turns_errors_of_drivers_into_os_errors(memory, monkeypatch) -> None:
    memory.pipe("/a/x.png", b"1")
    source = open_source("memory://a")

    def fail(*_: object, **__: object) -> bytes:
        raise ValueError("the line is down")

    for action in ("cat_file", "exists", "find", "glob", "info"):
        monkeypatch.setattr(type(memory), action, fail)
    with pytest.raises(OSError, match=r"'memory://a/x\.png' cannot be read: the line is down"):
        source.read(0)
    for url in ("memory://a", "memory://a/*.tar"):
        assert f"'{url}' cannot be listed: '{url}' cannot be read: the line is down; check" in message(url)
    assert "the line is down" in message("memory://a/x.tar")
    assert "the line is down" in message("memory://a/x.parquet")


def test_handles__are_few_and_closed(tmp_path, monkeypatch) -> None:
    location._handle.cache_clear()
    paths = [write_tar(tmp_path / f"{i:03}.tar", {"x.png": b"1"}) for i in range(location.OPEN_FILES + 10)]
    source = open_source(str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert contents(source) == [b"1"] * len(paths)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + location.OPEN_FILES
    location._handle.cache_clear()
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
