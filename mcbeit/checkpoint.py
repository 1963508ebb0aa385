"""Checkpoints: folders of safetensors with a manifest, written whole or not at all, without pickle.

checkpoints/step-00000468/model.safetensors       parameters; `backbone.` before the names of the official checkpoints
checkpoints/step-00000468/optimizer.safetensors   and further tensor groups (random, teacher)
checkpoints/step-00000468/manifest.json           step, numbers, and the size of every file
checkpoints/best.json                             which step had the best metric
checkpoints/base.json                             from which step the last skipped one can be repeated
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcbeit.atomic import sync, write_json
from mcbeit.config import Config
from mcbeit.errors import RunError
from mcbeit.group import Group
from mcbeit.parallel import placed_like

FORMAT = 1
TensorGroup = Mapping[str, Tensor]


class CheckpointConfig(Config):
    """When a run is saved. It is always saved at its end."""

    every_epochs: float = Field(1.0, gt=0)
    keep: int = Field(2, ge=1)  # the last ones; the best is kept too


class Checkpoint(NamedTuple):
    """What was saved: groups of tensors by name, and everything else as JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    numbers: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run; keeps the last `keep` and the best."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path, self.keep = path, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint under a temporary name, sync it, rename it, and remove what is no longer kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        final = self.path / f"step-{checkpoint.step:08d}"
        with _temporary_folder(self.path / f".{final.name}.partial") as folder:
            for group, tensors in checkpoint.tensors.items():
                # safetensors wants contiguous tensors that share no memory
                owned = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                save_file(owned, folder / f"{group}.safetensors")
                sync(folder / f"{group}.safetensors")
            files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
            manifest = {"format": FORMAT, "step": checkpoint.step, "files": files, "numbers": checkpoint.numbers}
            write_json(folder / "manifest.json", manifest)
            shutil.rmtree(final, ignore_errors=True)
            folder.rename(final)
        sync(self.path)
        self._prune()
        return final

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Note that `step` is the best so far by `metric` (higher is better); it will be kept."""
        write_json(self.path / "best.json", {"step": step, "metric": metric, "value": value})

    def best(self) -> dict[str, Any] | None:
        """Step, metric and value of the best checkpoint, if one was marked."""
        return self._note("best")

    def _note(self, name: str) -> dict[str, Any] | None:
        file = self.path / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def is_best(self, metric: str, value: float) -> bool:
        """Whether `value` would be the best so far (higher is better)."""
        best = self.best()
        return best is None or best["metric"] != metric or value > best["value"]

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self.path.iterdir())
        return sorted(step for name in names if name and is_complete(self.folder(step := int(name[1]))))

    def newest(self, tell: Callable[[str], None] = lambda message: None) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None if there is none; `tell` hears of damaged ones passed over.

        Raises RunError if all of them are damaged.
        """
        error: RunError | None = None
        for step in reversed(self.steps()):
            try:
                return load_checkpoint(self.folder(step))
            except RunError as found:
                tell(str(found))
                error = error or found
        if error is not None:
            raise error
        return None

    def keep_base(self, step: int) -> None:
        """Keep the newest checkpoint from which `step` can be repeated, until another is asked for."""
        earlier = [found for found in self.steps() if found <= step]
        if earlier:
            write_json(self.path / "base.json", {"step": earlier[-1]})

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises RunError if it is incomplete or damaged."""
        return load_checkpoint(self.folder(step))

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / f"step-{step:08d}"

    def _prune(self) -> None:
        steps = self.steps()
        kept = {*steps[-self.keep :], *(note["step"] for note in (self.best(), self._note("base")) if note)}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.folder(step))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back. Raises RunError if it is incomplete or damaged."""
    if not is_complete(folder):
        raise RunError(f"'{folder}' is not a complete checkpoint")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise RunError(f"'{folder}' has checkpoint format {manifest['format']}; this version reads format {FORMAT}")
    try:
        groups = {name.removesuffix(".safetensors"): load_file(folder / name) for name in manifest["files"]}
    except SafetensorError as error:
        raise RunError(f"the checkpoint '{folder}' is damaged ({error}); remove this folder") from error
    return Checkpoint(manifest["step"], groups, manifest["numbers"])


def share_checkpoint(checkpoint: Checkpoint | None, group: Group) -> Checkpoint | None:
    """The first worker's checkpoint, in all of them: only that worker has to see the run folder."""
    groups = {} if checkpoint is None or not group.is_first else checkpoint.tensors

    def head() -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        layout = {name: {key: (t.shape, t.dtype) for key, t in tensors.items()} for name, tensors in groups.items()}
        return None if checkpoint is None else (checkpoint.step, checkpoint.numbers, layout)

    if (found := group.first(head)) is None:
        return None
    step, numbers, layout = found
    for name, tensors in layout.items():
        received = groups.setdefault(name, {})
        for key, (shape, dtype) in tensors.items():
            group.broadcast(received.setdefault(key, torch.empty(shape, dtype=dtype)))
    return Checkpoint(step, groups, numbers)


def is_complete(folder: Path) -> bool:
    """Whether the manifest is there and every file has the size that it names."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors, `PARAMETER.FIELD`; its groups are rebuilt from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{field}": value for i, fields in state.items() for field, value in fields.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: TensorGroup) -> None:
    """Undo `optimizer_tensors` on an optimiser over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, field = name.partition(".")
        like = parameters[int(index)]
        # fused optimisers walk through memory: the state must lie in the memory format of its parameter
        if value.shape == like.shape:
            value = torch.empty_like(like, dtype=value.dtype).copy_(placed_like(value, like))
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_tensors() -> dict[str, Tensor]:
    """The states of torch's global generators: init and Gumbel noise draw from them."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def load_random_tensors(states: TensorGroup) -> None:
    """Undo `random_tensors`."""
    torch.set_rng_state(states["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda{i}"], i)


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
