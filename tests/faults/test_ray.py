"""Training under Ray Train, with everything in it killed once: long tests, run by `make test-faults`."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import (
    INTERVAL,
    STEPS,
    final_bytes,
    finish,
    last_checkpoint,
    losses,
    records,
    start,
    stop_at,
    train,
    wait_until,
    write_job,
)

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers that nobody has interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(job, run, "--workers", "2")
    return run


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    """No process of Ray, no socket, no folder of a session, no token in the home folder."""
    token = Path.home() / ".ray" / "auth_token"
    before = token.exists()
    yield
    wait_until(lambda: not processes_of_ray())
    assert token.exists() == before


def processes_of_ray() -> dict[int, str]:
    """Processes of Ray by their titles; those that have ended but are not yet waited for do not count."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and re.match(r"ray::|\S*(raylet|gcs_server)\b|.*/ray/(_private|dashboard)/", title):
            found[int(folder.name)] = title.strip()
    return found


def worker_pids() -> list[int]:
    return sorted(pid for pid, title in processes_of_ray().items() if "RayTrainWorker" in title)


def folders_of_ray() -> list[Path]:
    return list(Path("/tmp").glob("mcbeit-ray-*"))


def test_train__two_workers_make_the_curve_of_one(job: Path, whole: Path, tmp_path: Path) -> None:
    assert not folders_of_ray()
    run = tmp_path / "one"
    train(job, run)
    difference = max(abs(two / one - 1) for (_, two), (_, one) in zip(losses(whole), losses(run), strict=True))
    print(f"largest relative difference of a loss between one and two workers: {difference:.1e}")
    assert difference < 1e-3


def test_train__a_killed_worker_is_replaced(job: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(job, run, "--workers", "2")
    wait_until(lambda: len(records(run)) > 40, process)
    os.kill(worker_pids()[1], signal.SIGKILL)
    killed_at, saved = len(records(run)), last_checkpoint(run)
    finish(process)
    print(f"killed at step {killed_at}, gone on from the checkpoint of step {saved}")
    assert killed_at - saved <= INTERVAL + 1
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)


def test_train__a_killed_driver_leaves_a_run_that_goes_on(job: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(job, run, "--workers", "2")
    stop_at(process, run, 40, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    wait_until(lambda: not processes_of_ray())  # Ray's own ends by itself, within half a minute
    train(job, run, "--workers", "2", "--resume")
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)
    assert not folders_of_ray()  # also that of the killed driver


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train__asked_to_stop_saves_in_the_workers(
    number: signal.Signals, job: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(job, run, "--workers", "2")
    stop_at(process, run, 20, number)
    output = finish(process, 128 + number)
    assert not processes_of_ray()
    assert not folders_of_ray()
    assert 0 < last_checkpoint(run) == len(losses(run)) < STEPS
    assert f"stopped after {last_checkpoint(run)} steps, which are saved" in output
    train(job, run, "--workers", "2", "--resume")
    assert final_bytes(run) == final_bytes(whole)


def test_train__asking_for_too_much_is_told_at_once(job: Path, tmp_path: Path) -> None:
    output = train(job, tmp_path / "run", "--workers", "200", code=2)
    assert re.search(r"Error: 200 workers with 1 CPU each do not fit this machine, which has \d+ CPU, 0 GPU", output)
    output = train(job, tmp_path / "run", "--workers", "1", "--gpus-per-worker", "1", code=2)
    assert "1 workers with" in output
    assert "use --gpus-per-worker 0, or another cluster" in output
    assert not (tmp_path / "run").exists()


def test_train__mistakes_are_told_once_and_not_tried_again(job: Path, tmp_path: Path) -> None:
    output = train(job, tmp_path / "run", "--workers", "2", "data.source=/nowhere", code=2)
    assert output.count("Error: there is no image source at '/nowhere'") == 1
    assert "Traceback" not in output


def test_train__a_worker_that_dies_at_once_again_and_again_ends_the_run(job: Path, tmp_path: Path) -> None:
    """A worker without memory is killed by the system in this way."""
    run = tmp_path / "run"
    process = start(job, run, "--workers", "1")
    killed = set[int]()

    def kill_every_worker() -> bool:
        for pid in worker_pids():
            if pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        return process.poll() is not None

    wait_until(kill_every_worker)
    assert "Error" in finish(process, 2)
