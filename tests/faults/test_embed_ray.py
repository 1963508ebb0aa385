"""`mcbeit embed --workers` when workers and the command itself are killed: long trials, run by `make test-faults`."""

import os
import signal
from pathlib import Path

import pytest
from images import write_images
from processes import begin, finish, processes_of_ray, wait_until
from shards import pictures

pytestmark = pytest.mark.faults
SLOWLY = ("image_size=640", "batch_size=16", "data.num_workers=1")
WRITTEN = ("", ".ids.csv", ".json")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", pictures(640))
    return tmp_path / "photos"


def command(photos: Path, out: Path, *arguments: str) -> list[str]:
    return ["embed", "fake", str(photos), "-o", str(out), *SLOWLY, *arguments]


def num_chunks(out: Path) -> int:
    return len(list(Path(f"{out}.partial").glob("*.safetensors")))


def workers() -> set[int]:
    return {pid for pid, title in processes_of_ray().items() if title.startswith("ray::Worker")}


def same(one: Path, other: Path) -> bool:
    return all(Path(f"{one}{suffix}").read_bytes() == Path(f"{other}{suffix}").read_bytes() for suffix in WRITTEN)


def test_embed__a_killed_worker_costs_its_chunks_only(photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "e.npy"
    finish(begin(*command(photos, whole)))
    before = workers()
    process = begin(*command(photos, out, "--workers", "2"))
    wait_until(lambda: num_chunks(out) >= 2, process)
    os.kill(min(workers() - before), signal.SIGKILL)
    finish(process)
    assert same(whole, out)
    assert workers() <= before


def test_embed__a_killed_command_goes_on_without_ray(photos: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npy", tmp_path / "e.npy"
    finish(begin(*command(photos, whole)))
    before = workers()
    process = begin(*command(photos, out, "--workers", "2"))
    wait_until(lambda: num_chunks(out) >= 2, process)
    os.kill(process.pid, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    wait_until(lambda: workers() <= before)
    assert "images are done already" in finish(begin(*command(photos, out, "--resume")))
    assert same(whole, out)


def test_embed__asked_to_stop_ends_the_workers(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    before = workers()
    process = begin(*command(photos, out, "--workers", "2"))
    wait_until(lambda: num_chunks(out) >= 2, process)
    os.kill(process.pid, signal.SIGTERM)
    assert "images are kept; go on with the same command and --resume" in finish(process, 143)
    assert workers() <= before
    assert not out.exists()
