"""An index on the disk: whole or not at all, whatever is killed when; nothing of others is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vectors import make_embeddings

from mcbeit.errors import VectorIndexError
from mcbeit.index import Index, build_index
from mcbeit.index_folder import MANIFEST, publish, staging

OLD, NEW = make_embeddings(20), make_embeddings(30, seed=1)


def count_of(path: Path) -> int:
    """The number of vectors of an index that is whole."""
    with Index.open(path, verify=True) as index:
        assert index.search(OLD.vectors[:1], 1, fingerprint=OLD.spec.fingerprint)[0]
        return len(index)


def names(path: Path) -> set[str]:
    return {entry.name.partition("-")[0] for entry in path.iterdir()}


def test_publish__an_index_is_not_replaced_unasked(tmp_path: Path) -> None:
    build_index(OLD, tmp_path / "index")
    with pytest.raises(VectorIndexError, match=r"already; replace it with --force"):
        build_index(NEW, tmp_path / "index")
    assert count_of(tmp_path / "index") == 20


def test_publish__the_old_one_is_removed(tmp_path: Path) -> None:
    build_index(OLD, tmp_path / "index")
    build_index(NEW, tmp_path / "index", force=True)
    assert count_of(tmp_path / "index") == 30
    assert sorted(entry.name.partition("-")[0] for entry in (tmp_path / "index").iterdir()) == ["data", MANIFEST]


def test_publish__who_has_the_old_one_open_goes_on(tmp_path: Path) -> None:
    build_index(OLD, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        build_index(NEW, tmp_path / "index", force=True)
        assert index.search(OLD.vectors[3:4], 1, fingerprint=OLD.spec.fingerprint)[0][0].id == "3.png"
        assert len(index) == 20


def test_publish__who_comes_second_does_not_replace_the_first_unasked(tmp_path: Path) -> None:
    other = build_index(NEW, tmp_path / "other")
    with staging(tmp_path / "index", force=False) as data:
        build_index(OLD, tmp_path / "index")
        with pytest.raises(VectorIndexError, match="already"):
            publish(data, tmp_path / "index", other, force=False)
    assert count_of(tmp_path / "index") == 20
    assert len(list((tmp_path / "index").iterdir())) == 2


# The child ends itself at its n-th system call about files, of those that Python tells of.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
import faiss
from vectors import make_embeddings
from mcbeit.index import build_index

out, embeddings = Path(sys.argv[1]), make_embeddings(30, seed=1)
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "sqlite3.connect", "fcntl.flock"}

def killed_at(number):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        seen += event in EVENTS
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    sys.stderr = open(os.devnull, "w")
    build_index(embeddings, out, force=True)
    os._exit(0)

number = int(sys.argv[2])
child = os.fork()
if child == 0:
    killed_at(number)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def kill_build(out: Path, number: int) -> bool:
    """Build NEW there, and end the process at its n-th call; whether it was ended before it was done."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(out), str(number)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return int(found.stdout) != 0


def test_publish__killed_at_any_moment(tmp_path: Path) -> None:
    """The old index, and after the rename of the manifest the new one, are there and whole; the next build tidies."""
    counts = []
    for number in range(1, 200):
        build_index(OLD, tmp_path / "index", force=True)
        was_killed = kill_build(tmp_path / "index", number)
        counts.append(count_of(tmp_path / "index"))
        if not was_killed:
            break
    assert len(counts) > 10
    assert counts == sorted(counts)
    assert set(counts) == {20, 30}
    build_index(OLD, tmp_path / "index", force=True)
    assert names(tmp_path / "index") == {"data", MANIFEST}
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_publish__killed_before_there_is_any(tmp_path: Path) -> None:
    """Then there is no index, and a build without force makes one."""
    assert kill_build(tmp_path / "index", 6)
    with pytest.raises(VectorIndexError, match="there is no index"):
        Index.open(tmp_path / "index")
    build_index(OLD, tmp_path / "index")
    assert count_of(tmp_path / "index") == 20


def test_staging__folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(VectorIndexError, match=r"holds other things, such as 'a\.jpg'"):
        build_index(OLD, tmp_path / "photos", force=True)
    with pytest.raises(VectorIndexError, match="is a file"):
        build_index(OLD, tmp_path / "photos" / "a.jpg")


def test_staging__a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VectorIndexError, match="cannot be written to"):
        build_index(OLD, tmp_path / "file" / "index")


def test_staging__an_index_is_readable_by_whom_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        manifest = build_index(OLD, tmp_path / "index")
    finally:
        os.umask(before)
    assert (tmp_path / "index" / manifest.folder).stat().st_mode & 0o777 == 0o755


def test_open__no_index(tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match=r"there is no index at .*; build one: mcbeit index build"):
        Index.open(tmp_path)


def test_open__another_manifest(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"format": "onnx"}))
    with pytest.raises(VectorIndexError, match=r"not the manifest of an index that this version reads \(format"):
        Index.open(tmp_path)


def test_open__a_manifest_cannot_name_other_folders(tmp_path: Path) -> None:
    build_index(OLD, tmp_path / "index")
    file = tmp_path / "index" / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "folder": "../../etc"}))
    with pytest.raises(VectorIndexError, match="folder"):
        Index.open(tmp_path / "index")


def test_open__a_file_is_missing(tmp_path: Path) -> None:
    manifest = build_index(OLD, tmp_path / "index")
    (tmp_path / "index" / manifest.folder / "items.sqlite").unlink()
    with pytest.raises(VectorIndexError, match=r"lacks '.*items\.sqlite'; build it again"):
        Index.open(tmp_path / "index")


def test_open__damage_is_found_if_asked_for(tmp_path: Path) -> None:
    manifest = build_index(OLD, tmp_path / "index")
    file = tmp_path / "index" / manifest.folder / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    Index.open(tmp_path / "index").close()
    with pytest.raises(VectorIndexError, match=r"is damaged: index\.faiss changed"):
        Index.open(tmp_path / "index", verify=True)


def test_open__half_a_file(tmp_path: Path) -> None:
    manifest = build_index(OLD, tmp_path / "index")
    file = tmp_path / "index" / manifest.folder / "index.faiss"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(VectorIndexError, match=r"index\.faiss' cannot be read: .*; build the index again"):
        Index.open(tmp_path / "index")
