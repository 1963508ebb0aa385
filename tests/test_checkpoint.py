import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcbeit.atomic import write_json
from mcbeit.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    CheckpointFolder,
    is_complete,
    load_checkpoint,
    load_optimizer_tensors,
    load_random_tensors,
    optimizer_tensors,
    random_tensors,
)
from mcbeit.config import validate
from mcbeit.errors import ConfigError, RunError


def example(step: int, value: float = 0.0) -> Checkpoint:
    return Checkpoint(step, {"model": {"weight": torch.full((2, 3), value)}}, {"seen": 7})


def tree(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


# save and load


def test_save__keeps_every_tensor_and_number(tmp_path) -> None:
    storage = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "model": {
            "weight": nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0))),
            "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            "transposed": storage.T,
            "first_row": storage[0],  # lies in the same memory as the next
            "second_row": storage[1],
        },
        "optimizer": {"0.step": torch.tensor(3.0)},
        "random": {"cpu": torch.get_rng_state()},
        "nothing": {},
    }
    numbers = {"temperature": 0.1, "codes": [1, 2], "scaler": {}, "name": "Köln", "best": None}
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    path = folder.save(Checkpoint(468, tensors, numbers))
    assert path == folder.folder(468) == tmp_path / "run" / "checkpoints" / "step-00000468"

    loaded = load_checkpoint(path)
    assert loaded.step == 468
    assert loaded.numbers == numbers
    assert {group: set(found) for group, found in loaded.tensors.items()} == {g: set(t) for g, t in tensors.items()}
    for group, found in loaded.tensors.items():
        for name, tensor in found.items():
            assert tensor.dtype == tensors[group][name].dtype
            assert torch.equal(tensor, tensors[group][name])


def test_save__leaves_whole_files_and_a_manifest_of_them(tmp_path) -> None:
    CheckpointFolder(tmp_path).save(example(5))
    assert tree(tmp_path) == {"step-00000005", "step-00000005/manifest.json", "step-00000005/model.safetensors"}
    manifest = json.loads((tmp_path / "step-00000005" / "manifest.json").read_text())
    size = (tmp_path / "step-00000005" / "model.safetensors").stat().st_size
    assert manifest == {"format": 1, "step": 5, "files": {"model.safetensors": size}, "numbers": {"seen": 7}}


def test_save__the_same_step_again_replaces_it(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    for value in (1.0, 2.0):
        folder.save(example(5, value))
    assert folder.steps() == [5]
    assert load_checkpoint(folder.folder(5)).tensors["model"]["weight"].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint(5, {"model": {"weight": torch.zeros(2)}}, {"unwritable": object()}),
        Checkpoint(5, {"model": {"weight": torch.zeros(2)}, "no/such/folder": {}}, {}),
    ],
)
def test_save__that_fails_leaves_the_old_one_and_nothing_else(checkpoint: Checkpoint, tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(example(5, 1.0))
    before = tree(tmp_path)
    with pytest.raises(Exception, match=r"JSON serializable|No such file"):
        folder.save(checkpoint)
    assert tree(tmp_path) == before
    assert load_checkpoint(folder.folder(5)).tensors["model"]["weight"].tolist() == [[1.0] * 3] * 2


def test_save__sweeps_up_what_a_killed_save_of_the_step_left(tmp_path) -> None:
    (tmp_path / ".step-00000005.partial").mkdir()
    (tmp_path / ".step-00000005.partial" / "old.safetensors").write_bytes(b"half")
    CheckpointFolder(tmp_path).save(example(5))
    assert tree(tmp_path) == {"step-00000005", "step-00000005/manifest.json", "step-00000005/model.safetensors"}


# newest


def test_newest__passes_over_what_is_damaged(tmp_path) -> None:
    folder, told = CheckpointFolder(tmp_path, keep=9), []
    assert folder.newest() is None
    for step in (10, 20):
        folder.save(example(step))
    file = folder.folder(20) / "model.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    newest = folder.newest(told.append)
    assert newest is not None
    assert newest.step == 10
    assert len(told) == 1
    assert f"the checkpoint '{folder.folder(20)}' is damaged" in told[0]
    shutil.rmtree(folder.folder(10))
    with pytest.raises(RunError, match=r"step-00000020' is damaged .*; remove this folder"):
        folder.newest()


# which are kept


@pytest.mark.parametrize(("keep", "kept"), [(1, [50]), (2, [40, 50]), (9, [10, 20, 30, 40, 50])])
def test_save__keeps_the_last(keep: int, kept: list[int], tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, keep=keep)
    for step in (10, 20, 30, 40, 50):
        folder.save(example(step))
    assert folder.steps() == kept
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:08d}" for step in kept}


def test_save__keeps_the_best_as_long_as_it_is(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    found = []
    for step, accuracy in [(10, 0.5), (20, 0.9), (30, 0.7), (40, 0.95), (50, 0.1), (60, 0.1)]:
        is_best = folder.is_best("knn_top1", accuracy)
        folder.save(example(step))
        if is_best:
            folder.mark_best(step, "knn_top1", accuracy)
        found.append(folder.steps())
    assert found == [[10], [10, 20], [20, 30], [20, 40], [40, 50], [40, 60]]
    assert folder.best() == {"step": 40, "metric": "knn_top1", "value": 0.95}


def test_is_best__compares_values_of_one_metric(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.best() is None
    assert folder.is_best("knn_top1", 0.0)
    folder.mark_best(10, "knn_top1", 0.5)
    assert [folder.is_best("knn_top1", value) for value in (0.4, 0.5, 0.51)] == [False, False, True]
    assert folder.is_best("linear_top1", 0.1)


def test_steps__of_no_folder_are_none(tmp_path) -> None:
    assert CheckpointFolder(tmp_path / "missing").steps() == []


# incomplete and damaged ones


def break_file(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 20)


def remove_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def break_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 20)


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def leave_partial(folder: Path) -> None:
    folder.rename(folder.with_name(f".{folder.name}.partial"))


def make_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


DAMAGES = [break_file, remove_file, remove_manifest, break_manifest, empty_manifest, leave_partial, make_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_steps__an_incomplete_checkpoint_does_not_count(damage: Any, tmp_path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (10, 20, 30):
        folder.save(example(step))
    damage(folder.folder(30))
    assert folder.steps() == [20]
    assert not is_complete(folder.folder(30))
    with pytest.raises(RunError, match="step-00000030' is not a complete checkpoint"):
        load_checkpoint(folder.folder(30))
    folder.save(example(40))
    assert folder.steps() == [20, 40]  # two whole ones are kept, not one whole and one broken


def test_load_checkpoint__refuses_damaged_tensors(tmp_path) -> None:
    path = CheckpointFolder(tmp_path).save(example(5))
    size = (path / "model.safetensors").stat().st_size
    (path / "model.safetensors").write_bytes(b"\xff" * size)
    with pytest.raises(RunError, match=r"the checkpoint '.*step-00000005' is damaged \(.+\); remove this folder"):
        load_checkpoint(path)


def test_load_checkpoint__refuses_another_format(tmp_path) -> None:
    path = CheckpointFolder(tmp_path).save(example(5))
    manifest = json.loads((path / "manifest.json").read_text())
    write_json(path / "manifest.json", {**manifest, "format": 2})
    with pytest.raises(RunError, match="has checkpoint format 2; this version reads format 1"):
        load_checkpoint(path)


def test_write_json__a_reader_sees_the_old_file_or_the_new_one(tmp_path) -> None:
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "x.json", {"new": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"old": 1}
    write_json(tmp_path / "x.json", {"new": [1.5, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"new": [1.5, None]}
    assert tree(tmp_path) == {"x.json"}


@pytest.mark.parametrize("values", [{"keep": 0}, {"every_epochs": 0}])
def test_checkpoint_config__refuses(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="greater than"):
        validate(CheckpointConfig, values)


# optimiser and random numbers


def adamw(fused: bool) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), fused=fused)


def train(model: nn.Linear, optimizer: torch.optim.AdamW, seeds: range) -> None:
    for seed in seeds:
        images = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_load_optimizer_tensors__training_goes_on_as_if_nothing_had_happened(fused: bool, tmp_path) -> None:
    model, optimizer = adamw(fused)
    train(model, optimizer, range(3))
    state = Checkpoint(3, {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}, {})
    path = CheckpointFolder(tmp_path).save(state)
    assert set(load_checkpoint(path).tensors["optimizer"]) == {
        f"{i}.{field}" for i in (0, 1) for field in ("step", "exp_avg", "exp_avg_sq")
    }
    train(model, optimizer, range(3, 6))

    again, optimizer_again = adamw(fused)
    again.load_state_dict(load_checkpoint(path).tensors["model"])
    load_optimizer_tensors(optimizer_again, load_checkpoint(path).tensors["optimizer"])
    train(again, optimizer_again, range(3, 6))
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(again.bias, model.bias)
    assert [group["weight_decay"] for group in optimizer_again.param_groups] == [0.1, 0.0]


def test_load_optimizer_tensors__the_state_lies_in_memory_as_its_parameter_does(tmp_path) -> None:
    def step(model: nn.Conv2d, optimizer: torch.optim.AdamW) -> None:
        model.weight.grad = model.weight.detach() ** 2
        optimizer.step()

    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last)
    again = copy.deepcopy(model)
    optimizer, optimizer_again = (torch.optim.AdamW(m.parameters(), fused=True) for m in (model, again))
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    saved = load_checkpoint(CheckpointFolder(tmp_path).save(Checkpoint(1, state, {})))
    again.load_state_dict(saved.tensors["model"])
    load_optimizer_tensors(optimizer_again, saved.tensors["optimizer"])
    step(model, optimizer)
    step(again, optimizer_again)
    assert torch.equal(again.weight, model.weight)


def test_optimizer_tensors__before_the_first_step_there_are_none(tmp_path) -> None:
    model, optimizer = adamw(fused=True)
    path = CheckpointFolder(tmp_path).save(Checkpoint(0, {"optimizer": optimizer_tensors(optimizer)}, {}))
    assert load_checkpoint(path).tensors == {"optimizer": {}}
    load_optimizer_tensors(optimizer, {})
    train(model, optimizer, range(1))


def test_random_tensors__bring_the_same_numbers_again(tmp_path) -> None:
    path = CheckpointFolder(tmp_path).save(Checkpoint(0, {"random": random_tensors()}, {}))
    drawn = torch.rand(5), nn.functional.dropout(torch.ones(50))
    torch.rand(3)
    load_random_tensors(load_checkpoint(path).tensors["random"])
    assert torch.equal(torch.rand(5), drawn[0])
    assert torch.equal(nn.functional.dropout(torch.ones(50)), drawn[1])
