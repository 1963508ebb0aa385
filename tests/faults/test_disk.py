"""A disk that is full in the middle of a run: a small file system in memory. Needs the right to mount one (root)."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import final_bytes, finish, last_checkpoint, losses, start, train, wait_until

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all that is left of it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    return ballast


def test_train__on_a_full_disk_ends_with_one_error_and_goes_on_when_there_is_room(
    job: Path, small_disk: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", small_disk / "run"
    train(job, whole)
    process = start(job, run)
    wait_until(lambda: last_checkpoint(run) > 0 and len(losses(run)) > 20, process)
    ballast = fill(small_disk)
    output = finish(process, 2)
    assert output.count("Error: ") == 1
    assert "cannot be written to" in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    saved = last_checkpoint(run)
    assert saved > 0
    ballast.unlink()
    train(job, run, "--resume")
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)
