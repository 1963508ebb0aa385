"""Runs that are killed or asked to stop, as processes: they go on as if nothing had happened."""

import os
import signal
from pathlib import Path

import pytest
from processes import (
    INTERVAL,
    STEPS,
    final_bytes,
    finish,
    last_checkpoint,
    losses,
    start,
    stop_at,
    train,
)


@pytest.fixture(scope="module")
def whole(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody has interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(job, run)
    return run


def test_train__killed_in_mid_epoch_goes_on_bit_by_bit(job: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(job, run, "data.num_workers=1")
    stop_at(process, run, 40, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    assert INTERVAL <= last_checkpoint(run) < STEPS
    assert not (run / "summary.json").exists()
    message = train(job, run, code=2)
    assert f"Error: the run '{run}' exists already; go on with --resume" in message
    train(job, run, "--resume")
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_train__asked_to_stop_saves_the_step_it_is_at(
    number: signal.Signals, code: int, job: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(job, run)
    stop_at(process, run, 40, number)
    output = finish(process, code)
    stopped_at = last_checkpoint(run)
    assert stopped_at == len(losses(run)) > 40  # nothing is repeated
    assert output.splitlines()[-1] == (
        f"stopped after {stopped_at} steps, which are saved; go on with the same command and --resume ({run})"
    )
    train(job, run, "--resume")
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_train__whose_loader_processes_are_asked_to_stop_too_saves_and_leaves_none(
    number: signal.Signals, code: int, job: Path, tmp_path: Path
) -> None:
    """As Ctrl-C and the schedulers of clusters do it."""
    run = tmp_path / "run"
    process = start(job, run, "data.num_workers=2")
    stop_at(process, run, 5, number, everybody=True)
    assert "which are saved; go on with the same command and --resume" in finish(process, code)
    assert last_checkpoint(run) == len(losses(run)) > 5
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody is left of its session


def test_train__a_run_that_is_finished_is_only_told(job: Path, whole: Path) -> None:
    before = losses(whole)
    assert "complete after 120 steps" in train(job, whole, "--resume")
    assert losses(whole) == before


def test_train__refuses_to_go_on_with_another_config(job: Path, whole: Path) -> None:
    message = train(job, whole, "--resume", "optim.lr=0.1", "model.depth=3", code=2)
    assert "cannot be resumed with another config" in message
    assert "  model.depth: 2 in the run, 3 now" in message
    assert "  optim.lr: 0.003 in the run, 0.1 now" in message


def test_train__under_torchrun_every_process_is_a_worker(job: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = []
    for rank in range(2):
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777", "RANK": str(rank), "WORLD_SIZE": "2"}
        processes.append(start(job, run, environment={**address, "LOCAL_WORLD_SIZE": "2"}))
    for process in processes:
        finish(process)
    for (step, two), (same, one) in zip(losses(run), losses(whole), strict=True):
        assert step == same
        assert two == pytest.approx(one, rel=1e-3)


def test_train__under_ray_needs_no_more_than_there_is(job: Path, tmp_path: Path) -> None:
    assert "name the --workers too" in train(job, tmp_path / "run", "--address", "auto", code=2)
    assert "--workers must be a number, or MIN-MAX" in train(job, tmp_path / "run", "--workers", "3-2", code=2)
