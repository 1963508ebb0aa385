from pathlib import Path

import fsspec
import pytest
from shards import cut, pictures, write_tar

from mcbeit.sources import open_source, tar, tar_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; and every index is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_cache, "WORTH_KEEPING", 3)
    return tmp_path / "cache" / "mcbeit" / "tar"


def kept(cache: Path) -> int:
    return len(list(cache.glob("*"))) if cache.exists() else 0


def refuse_to_read(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the headers are read again")

    monkeypatch.setattr(tar, "read_index", refuse)


def test_open_tar__reads_the_headers_of_a_large_file_once(cache: Path, tmp_path, monkeypatch) -> None:
    members = {**pictures(4), "odd \udce9 name.png": b"", "x.txt": b""}
    path = write_tar(tmp_path / "s.tar", {**members, "003.cls": b"7"})
    first = open_source(str(path))
    assert kept(cache) == 1
    monkeypatch.chdir(tmp_path)
    refuse_to_read(monkeypatch)
    again = open_source("s.tar")
    assert [again.read(i) for i in range(5)] == [first.read(i) for i in range(5)] == list(members.values())[:5]
    assert again.summary() == first.summary()
    assert again.passed_over == first.passed_over
    assert first.name(4).endswith(":odd \udce9 name.png")
    assert again.name(4) == "s.tar:odd \udce9 name.png"


def test_open_tar__reads_a_file_that_changed_again(cache: Path, tmp_path) -> None:
    path = write_tar(tmp_path / "s.tar", pictures(4))
    assert len(open_source(str(path))) == 4
    write_tar(path, pictures(5))
    assert len(open_source(str(path))) == 5
    assert kept(cache) == 2
    assert len(open_source(str(path), channels=4)) == 5
    assert kept(cache) == 3


def test_open_tar__keeps_no_index_of_small_or_damaged_files(cache: Path, tmp_path) -> None:
    open_source(str(write_tar(tmp_path / "small.tar", pictures(2))))
    path = write_tar(tmp_path / "damaged.tar", pictures(5))
    cut(path, path.stat().st_size - 10240)
    assert open_source(str(path)).damaged
    assert kept(cache) == 0


def test_open_tar__of_a_url_is_kept_if_its_storage_tells_of_changes(cache: Path, tmp_path, monkeypatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/cached/s.tar", write_tar(tmp_path / "s.tar", pictures(1)).read_bytes())
    open_source("memory://cached/s.tar")
    assert kept(cache) == 1
    plain = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda *of: {k: v for k, v in plain(*of).items() if k != "created"})
    open_source("memory://cached/s.tar")
    assert kept(cache) == 1
    memory.store.clear()


def test_open_tar__does_without_a_cache(cache: Path, tmp_path, monkeypatch) -> None:
    path = write_tar(tmp_path / "s.tar", pictures(4))
    open_source(str(path))
    (file,) = cache.iterdir()
    for broken in ("", "[]", '{"name": "s.tar"}', "\x00"):
        file.write_text(broken)
        assert len(open_source(str(path))) == 4
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(open_source(str(path))) == 4
