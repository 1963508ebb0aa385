"""`mcbeit embed` as a process that is killed: no row is lost or doubled, and every bit is the same."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from images import write_images
from processes import begin, finish, wait_until
from shards import pictures

NUM_IMAGES = 400  # seven chunks
SLOWLY = ("image_size=448", "batch_size=16", "data.num_workers=1")  # resizing to so many pixels takes its time
WRITTEN = ("", ".ids.csv", ".json")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, pictures(NUM_IMAGES))
    return folder


def command(photos: Path, out: Path, *arguments: str) -> list[str]:
    return ["embed", "fake", str(photos), "-o", str(out), *SLOWLY, *arguments]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The files of a command that nobody has interrupted."""
    out = tmp_path_factory.mktemp("whole") / "e.npy"
    finish(begin(*command(photos, out)))
    return contents(out)


def contents(out: Path) -> list[bytes]:
    return [(out.parent / f"{out.name}{suffix}").read_bytes() for suffix in WRITTEN]


def more_chunks_than(out: Path, count: int) -> Callable[[], bool]:
    return lambda: len(list(Path(f"{out}.partial").glob("*.safetensors"))) > count


def test_embed__killed_again_and_again_goes_on_bit_by_bit(photos: Path, whole: list[bytes], tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    for kept in (0, 2, 4):
        process = begin(*command(photos, out, "--resume"))
        wait_until(more_chunks_than(out, kept), process)
        os.kill(process.pid, signal.SIGKILL)
        finish(process, -signal.SIGKILL)
        assert not out.exists()
    said = finish(begin(*command(photos, out, "--resume")))
    assert "of 400 images are done already" in said
    assert contents(out) == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.npy", "e.npy.ids.csv", "e.npy.json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_embed__asked_to_stop_keeps_what_is_done(
    number: signal.Signals, code: int, photos: Path, whole: list[bytes], tmp_path: Path
) -> None:
    out = tmp_path / "e.npy"
    process = begin(*command(photos, out))
    wait_until(more_chunks_than(out, 1), process)
    os.kill(process.pid, number)
    *_, last = finish(process, code).splitlines()
    kept = 64 * len(list(Path(f"{out}.partial").glob("*.safetensors")))
    assert last == f"stopped; {kept} of 400 images are kept; go on with the same command and --resume ({out})"
    finish(begin(*command(photos, out, "--resume")))
    assert contents(out) == whole


def test_embed__two_commands_do_not_share_a_file(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    first = begin(*command(photos, out))
    wait_until(more_chunks_than(out, 0), first)
    assert f"another command is at work on '{out}'" in finish(begin(*command(photos, out, "--resume")), 2)
    os.kill(first.pid, signal.SIGKILL)
    finish(first, -signal.SIGKILL)
