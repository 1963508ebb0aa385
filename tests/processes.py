"""Runs of the command line as processes of their own, to be killed and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny import pretrain_config, tokenizer_config, write_shapes

from mcbeit.checkpoint import CheckpointFolder
from mcbeit.config import dump
from mcbeit.tokenizer_training import train_tokenizer

ROOT = Path(__file__).parents[1]
STEPS, INTERVAL = 120, 15  # of the run, and between its checkpoints; an epoch has 3 steps
PATIENCE_SECONDS = 300.0


def write_job(folder: Path, **changes: Any) -> Path:
    """The config of a run of STEPS steps, with the images and the tokenizer that it needs; its file."""
    source = write_shapes(folder / "shapes")
    optim = {"steps": 60, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    train_tokenizer(tokenizer_config(source, folder / "tokenizer", optim=optim))
    values: dict[str, Any] = {
        "model": {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.3},
        "optim": {"steps": STEPS, "warmup_epochs": 1, "batch_size": 8, "lr": 3e-3},
        "log": {"every_steps": 1, "tensorboard": False},
        "checkpoint": {"every_epochs": INTERVAL / 3},
    }
    config = pretrain_config(source, folder / "tokenizer", folder / "run", **{**values, **changes})
    (folder / "job.yaml").write_text(dump(config))
    return folder / "job.yaml"


def start(
    job: Path, run: Path | str, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`mcbeit train` of the job into the folder `run`, one thread per process, in a session of its own."""
    command = [sys.executable, "-m", "mcbeit.cli.main", "train", str(job), f"run={run}", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process that ends with `code`; returns what it has said."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, output
    return output


def train(job: Path, run: Path, *arguments: str, code: int = 0, environment: Mapping[str, str] | None = None) -> str:
    """The whole command."""
    return finish(start(job, run, *arguments, environment=environment), code)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for something to happen, while a process is alive."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def stop_at(
    process: subprocess.Popen[str], run: Path, step: int, number: signal.Signals, *, everybody: bool = False
) -> None:
    """Send a signal as soon as a step is logged, to the process or to its loader processes too."""
    wait_until(lambda: len(records(run)) > step, process)
    (os.killpg if everybody else os.kill)(process.pid, number)


def records(run: Path) -> list[dict[str, Any]]:
    """The measurements so far."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []


def losses(run: Path) -> list[tuple[int, float]]:
    """The loss of every step."""
    return [(record["step"], record["loss"]) for record in records(run)]


def last_checkpoint(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max(CheckpointFolder(run / "checkpoints").steps(), default=0)


def final_bytes(run: Path) -> dict[str, bytes]:
    """The files of the last checkpoint: weights, optimiser, random states."""
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


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


def begin(*arguments: str, folder: Path | None = None) -> subprocess.Popen[str]:
    """`mcbeit` with any arguments, one thread per process, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mcbeit.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=folder,
        start_new_session=True,
    )
