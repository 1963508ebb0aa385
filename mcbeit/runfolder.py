"""The folder of a run: config.yaml and env.json, metrics.jsonl and tensorboard/, checkpoints/, summary.json."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml
from pydantic import Field
from safetensors import SafetensorError
from torch import nn

import mcbeit
from mcbeit.atomic import finite, write_bytes, write_json
from mcbeit.checkpoint import Checkpoint, CheckpointConfig, CheckpointFolder, share_checkpoint
from mcbeit.config import Config, Seed, UserPath, dump, flatten
from mcbeit.device import choose_device, device_name
from mcbeit.errors import RunError
from mcbeit.group import ALONE, Group
from mcbeit.sources import ImageSource

VERSIONS_OF = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
MAY_CHANGE = ("run", "compute.", "log.", "checkpoint.", "eval.", "data.num_workers", "data.max_corrupt_fraction")


class LogConfig(Config):
    """When a run is measured, and whether TensorBoard gets it too."""

    every_steps: int = Field(50, ge=1)
    tensorboard: bool = True


class RunConfig(Config):
    """What every job has: a name, a folder, a seed, and how often it is measured and saved."""

    job: str
    run: UserPath  # the run folder
    seed: Seed = 0
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


@runtime_checkable
class RunState(Protocol):
    """What changes while a run goes on. `step` counts finished steps."""

    step: int

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def checkpoint(self) -> Checkpoint:
        """All of it, as a checkpoint of the finished steps."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to what a checkpoint holds."""
        ...


class RunFolder:
    """A run's files. Made by `open_run`."""

    def __init__(self, path: Path, *, keep: int) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep=keep)
        self.metrics_file = path / "metrics.jsonl"
        self.corrupt_file = path / "corrupt.txt"
        self.skipped_file = path / "skipped.jsonl"

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line of measurements."""
        with writing("a line of measurements", self.path):
            _append(self.metrics_file, record)

    def records(self) -> list[dict[str, Any]]:
        """All measurements so far."""
        return list(read_records(self.path))

    def record_skip(self, record: Mapping[str, Any]) -> None:
        """Note a step that was skipped; the checkpoint that it can be repeated from is kept."""
        with writing("the note of a skipped step", self.path):
            _append(self.skipped_file, record)
            self.checkpoints.keep_base(record["step"])

    def skipped_steps(self) -> list[dict[str, Any]]:
        """The notes of all skipped steps."""
        return list(_read_lines(self.skipped_file))

    def rewind(self, step: int) -> None:
        """Forget measurements and skips at or after `step`: they will be made again."""
        for file in (self.metrics_file, self.skipped_file):
            kept = [record for record in _read_lines(file) if record["step"] < step]
            if kept or file.exists() or file == self.metrics_file:
                with writing(f"'{file.name}'", self.path):
                    write_bytes(file, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def go_on(self, state: RunState, group: Group = ALONE) -> list[str]:
        """Bring `state` to the newest checkpoint that can be read, if there is one, and forget what was measured since.

        Returns what a person should hear: which damaged checkpoints were passed over. Raises RunError if all are.
        """
        passed_over: list[str] = []
        checkpoint = group.each(lambda: self.checkpoints.newest(passed_over.append) if group.is_first else None)
        if (checkpoint := share_checkpoint(checkpoint, group)) is not None:
            state.restore(checkpoint)
        group.first(lambda: self.rewind(state.step))
        return passed_over

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and remove what is no longer kept. Raises RunError if the disk does not take it."""
        with writing(f"the checkpoint of step {checkpoint.step}", self.path):
            self.checkpoints.save(checkpoint)

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Note that the checkpoint of a step is the best so far."""
        with writing("the note of the best checkpoint", self.path):
            self.checkpoints.mark_best(step, metric, value)

    def finish(self, numbers: dict[str, Any]) -> dict[str, Any]:
        """Note that the run is complete; returns its summary: the last measurements, `numbers`, the best checkpoint."""
        last: dict[str, Any] = {}
        for record in self.records():
            last |= record
        summary = {**last, **numbers, "best": self.checkpoints.best()}
        with writing("the summary", self.path):
            write_json(self.path / "summary.json", summary)
        return summary

    def has_begun(self) -> bool:
        """Whether anything was measured or saved."""
        return bool(self.records() or self.checkpoints.steps())

    def summary(self) -> dict[str, Any] | None:
        """The summary of a complete run, else None."""
        return read_summary(self.path)


def open_run(config: RunConfig, source: ImageSource, *, resume: bool, named: Callable[[str], str] = str) -> RunFolder:
    """Make the folder of a new run, or with `resume` open one that exists; config and environment are written first.

    `named` gives the config the names that people know, where the folder is a copy of what is kept elsewhere. A run
    that stopped before its first measurement counts as new, and with `resume` one without checkpoint may go on
    with anything. Later the environment stays that of the start. Raises RunError if the folder belongs to something
    else, to a run that is not to be resumed, to another config, or to a source that has changed since.
    """
    path = Path(config.run)
    run = RunFolder(path, keep=config.checkpoint.keep)
    if path.exists() and not path.is_dir():
        raise RunError(f"the run folder '{path}' is a file; choose another with run=FOLDER")
    if path.is_dir() and any(path.iterdir()):
        if not (path / "config.yaml").is_file():
            raise RunError(f"the folder '{path}' is not empty and is not a run; choose another with run=FOLDER")
        if run.has_begun() and not resume:
            raise RunError(f"the run '{path}' exists already; go on with --resume, or choose another with run=FOLDER")
    goes_on = bool(run.checkpoints.steps())
    if goes_on:
        _check_same(named(dump(config)), path)
        _check_source(source, path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not goes_on:
            write_json(path / "env.json", {**environment(config.seed), "source": source.summary()})
        write_bytes(path / "config.yaml", named(dump(config)).encode())
    except OSError as error:
        raise RunError(f"the run folder '{path}' cannot be written: {error.strerror}") from error
    return run


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The measurements of a run; a line that was cut off by a crash is passed over."""
    yield from _read_lines(path / "metrics.jsonl")


@contextmanager
def writing(thing: str, path: Path) -> Iterator[None]:
    """Raise RunError if the disk does not take it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RunError(
            f"{thing} cannot be written to '{path}': {reason}. Earlier checkpoints are untouched; make room or mend "
            "the folder, and go on with --resume"
        ) from error


def _append(file: Path, record: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(finite(record)) + "\n")


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if line.endswith("}"):
            yield json.loads(line)


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of a complete run, else None."""
    file = path / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def environment(seed: int) -> dict[str, Any]:
    """What a run needs to be repeated, beside its config."""
    return {
        "mcbeit": mcbeit.__version__,
        "git": _git_state(),
        "command": sys.argv,
        "seed": seed,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS_OF},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "device": device_name(choose_device())},
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that the code runs from; None if it is installed from a package."""
    code = Path(mcbeit.__file__)
    arguments = (["ls-files", "--error-unmatch", code.name], ["rev-parse", "HEAD"], ["status", "--porcelain"])
    try:
        _, commit, changes = (
            subprocess.run(["git", "-C", str(code.parent), *words], capture_output=True, text=True, check=True).stdout
            for words in arguments  # the first fails if the repository around the code is somebody else's
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _check_same(config: str, path: Path) -> None:
    values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise RunError(f"'{path / 'config.yaml'}' holds no config; choose another folder with run=FOLDER")
    old = flatten(values)
    new = flatten(yaml.safe_load(config))
    changed = [
        f"  {key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    if changed:
        raise RunError("\n".join([f"the run '{path}' cannot be resumed with another config:", *changed]))


def _check_source(source: ImageSource, path: Path) -> None:
    """Steps, order and batches depend on the images that there are, so another source would be another run."""
    file = path / "env.json"
    old = json.loads(file.read_text(encoding="utf-8")).get("source") if file.exists() else None
    new = source.summary()
    if old is not None and old != new:
        raise RunError(
            f"the images of the run '{path}' have changed: {old['images']} images when it began, {new['images']} now, "
            "or other names. Bring the old ones back, or start another run with run=FOLDER"
        )
