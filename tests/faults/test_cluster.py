"""A cluster that is there already, on this machine: trained on, submitted to, grown while a run is on it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import final_bytes, finish, last_checkpoint, losses, start, train, wait_until, worker_pids

from mcbeit.ray_cluster import ENVIRONMENT
from mcbeit.temporary import temporary_folder

pytestmark = pytest.mark.faults
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORT, DASHBOARD = 26379, 28265
VARIABLES = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


def ray(*arguments: str) -> str:
    """Ray's own command line, with the token of the cluster."""
    done = subprocess.run([*RAY, *arguments], capture_output=True, text=True, env={**os.environ, **VARIABLES})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def cluster() -> Iterator[str]:
    """The address of a cluster with one CPU."""
    with temporary_folder("ray", Path("/tmp")) as folder:
        memory = ["--object-store-memory", str(128 * 2**20), "--temp-dir", str(folder)]
        head = ["--head", "--node-ip-address", "127.0.0.1", "--port", str(PORT), "--dashboard-port", str(DASHBOARD)]
        ray("start", *head, "--num-cpus", "1", *memory)
        yield f"127.0.0.1:{PORT}"
        ray("stop", "--force")


def grow() -> None:
    """Add a node with one CPU."""
    memory = ["--object-store-memory", str(128 * 2**20)]
    ray("start", "--address", f"127.0.0.1:{PORT}", "--node-ip-address", "127.0.0.1", "--num-cpus", "1", *memory)


def test_train__on_a_cluster_that_is_there(cluster: str, job: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(job, whole)
    output = train(job, run, "--workers", "2", "--address", cluster, code=2, environment=VARIABLES)
    assert "2 workers with 1 CPU each do not fit the cluster, which has 1 CPU, 0 GPU; use --workers 1" in output
    train(job, run, "--workers", "1", "--address", cluster, environment=VARIABLES)
    assert losses(run) == losses(whole)
    assert final_bytes(run) == final_bytes(whole)
    assert not list(tmp_path.glob("*.ray"))


def test_train__where_there_is_no_cluster_says_so(job: Path, tmp_path: Path) -> None:
    output = train(job, tmp_path / "run", "--workers", "1", "--address", "127.0.0.1:1", code=2)
    assert re.search(r"Error: there is no Ray cluster at --address 127\.0\.0\.1:1 ", output)


def test_train__submitted_as_a_job(cluster: str, job: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = f"{sys.executable} -m mcbeit.cli.main train {job} run={run} --workers 1 --address auto --resume"
    output = ray("job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}", "--", *command.split())
    assert "succeeded" in output
    assert (run / "summary.json").exists()


def test_train__an_elastic_run_grows_with_its_cluster(cluster: str, job: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    longer = ["optim.steps=12000", "checkpoint.every_epochs=200"]
    process = start(job, run, *longer, "--workers", "1-2", "--address", cluster, environment=VARIABLES)
    wait_until(lambda: last_checkpoint(run) > 100, process)  # without one a larger group begins anew
    grow()
    began = time.monotonic()
    wait_until(lambda: len(worker_pids()) == 2, process)
    seen = last_checkpoint(run)
    wait_until(lambda: last_checkpoint(run) > seen, process)
    print(f"a checkpoint of two workers {time.monotonic() - began:.0f} s after the node was there")
    process.send_signal(signal.SIGINT)
    assert ", 2 workers, " in finish(process, 128 + signal.SIGINT)
    steps = len(losses(run))
    assert [step for step, _ in losses(run)] == list(range(steps))
    reference = start(job, whole, *longer)
    wait_until(lambda: len(losses(whole)) >= steps, reference)
    reference.kill()
    reference.communicate()
    pairs = [(found, wanted) for (_, found), (_, wanted) in zip(losses(run), losses(whole), strict=False)]
    grown_at = next(step for step, (found, wanted) in enumerate(pairs) if found != wanted)
    assert grown_at > 100  # up to there it is the run of one worker, to the last bit
    for found, wanted in pairs[grown_at : grown_at + 50]:  # rounding grows over thousands of steps
        assert found == pytest.approx(wanted, rel=1e-3)
