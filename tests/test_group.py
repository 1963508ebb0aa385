"""Several workers on one run: they see the same run as one worker does, and they decide together."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from tiny import pretrain_config

import mcbeit.pretrain as module
from mcbeit.checkpoint import Checkpoint, CheckpointFolder, load_checkpoint, share_checkpoint
from mcbeit.errors import ConfigError, DataError, Interrupted, RunError
from mcbeit.group import ALONE, Group
from mcbeit.pretrain import predict, pretrain
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.runfolder import RunFolder
from mcbeit.worker import Worker

MODEL = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.3}
OFTEN = {"model": MODEL, "log": {"every_steps": 1, "tensorboard": False}, "checkpoint": {"every_epochs": 0.67}}


@pytest.fixture
def source(shapes: Path) -> Path:
    return shapes


@pytest.fixture
def tokenizer(trained_tokenizer: Path) -> Path:
    return trained_tokenizer


@pytest.fixture(scope="module")
def alone(shapes: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one worker that others are compared with."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    pretrain(pretrain_config(shapes, trained_tokenizer, run, **OFTEN))
    return run


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    steps = CheckpointFolder(run / "checkpoints").steps()
    return load_checkpoint(run / "checkpoints" / f"step-{steps[-1]:08d}").tensors["model"]


# the group itself


def test_group__alone_is_the_plain_case() -> None:
    assert ALONE.is_first
    assert ALONE.share([3, 4]) == [3, 4]
    assert ALONE.first(lambda: 5) == ALONE.each(lambda: 5) == 5
    assert ALONE.gather("x") == ["x"]
    assert ALONE.sum(torch.ones(2)).tolist() == [1, 1]


def test_group__a_batch_is_shared_without_loss() -> None:
    groups = [Group(rank, 3) for rank in range(3)]
    shares = [group.share(range(8)) for group in groups]
    assert sorted(item for share in shares for item in share) == list(range(8))
    assert [len(share) for share in shares] == [3, 3, 2]
    with pytest.raises(RunError, match=r"a batch of 2 images cannot be shared by 3 workers; use fewer workers"):
        groups[0].share(range(2))


def talk(worker: Worker, folder: Path) -> dict[str, Any]:
    """Everything that the workers of a group can say to each other."""
    group, found = worker.group, {}
    found["first"] = group.first(lambda: f"rank {group.rank}")
    found["gathered"] = group.gather(group.rank)
    found["sum"] = group.sum(torch.tensor([1.0, group.rank])).tolist()
    for name, action in (
        ("first fails", lambda: group.first(lambda: _fail(group, 0))),
        ("one fails", lambda: group.each(lambda: _fail(group, 1))),
    ):
        try:
            action()
        except DataError as error:
            found[name] = (str(error), error.is_shared)
    nothing = share_checkpoint(None, group)
    tensors = {"model": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(True)}, "random": {}}
    shared = share_checkpoint(Checkpoint(7, tensors, {"x": 1}) if group.is_first else None, group)
    assert shared is not None
    found["checkpoint"] = (nothing, shared.step, shared.numbers, shared.tensors["model"]["a"].tolist())
    return found


def _fail(group: Group, rank: int) -> int:
    if group.rank == rank:
        raise DataError(f"rank {rank} has failed")
    return 1


def test_group__the_workers_hear_each_other(tmp_path: Path) -> None:
    wanted = {
        "first": "rank 0",
        "gathered": [0, 1],
        "sum": [2.0, 1.0],
        "first fails": ("rank 0 has failed", True),
        "one fails": ("rank 1 has failed", True),
        "checkpoint": (None, 7, {"x": 1}, [[0, 1, 2], [3, 4, 5]]),
    }
    assert run_ranks(2, talk, tmp_path) == [wanted, wanted]


# training together


def train(worker: Worker, config: PretrainConfig) -> dict[str, Any]:
    return pretrain(config, worker=worker)


@pytest.mark.parametrize("options", [{}, {"compute": {"shard": "fsdp"}}, {"optim": {"accumulate": 2}}], ids=str)
def test_pretrain__two_workers_make_the_run_of_one(
    source: Path, tokenizer: Path, alone: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = pretrain_config(source, tokenizer, tmp_path, **OFTEN)
    changes = {name: getattr(config, name).model_copy(update=values) for name, values in options.items()}
    found = run_ranks(2, train, config.model_copy(update=changes))
    assert found[0] == found[1] == json.loads((tmp_path / "summary.json").read_text())
    for one, two in zip(records(alone), records(tmp_path), strict=True):
        assert two["step"] == one["step"]
        for name in ("loss", "target_entropy", "neighbours", "gradient_norm", "code_perplexity"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert weights(alone).keys() == weights(tmp_path).keys()
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=1e-3, atol=1e-5)


def test_pretrain__workers_may_have_shares_of_different_sizes_and_come_and_go(
    source: Path, tokenizer: Path, alone: Path, tmp_path: Path
) -> None:
    config = pretrain_config(source, tokenizer, tmp_path, **OFTEN)
    assert all(isinstance(found, Interrupted) for found in run_ranks(3, train_until_step_3, config))
    assert CheckpointFolder(tmp_path / "checkpoints").steps()[-1] == 4
    pretrain(config, resume=True)
    for one, two in zip(records(alone), records(tmp_path), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


class _StopAt:
    """A worker's request to stop, at a step."""

    signal = None

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls < 0

    def listening(self) -> Any:
        return nullcontext()


def train_until_step_3(worker: Worker, config: PretrainConfig) -> dict[str, Any]:
    """The last worker alone is asked to stop, at step 3."""
    calls = 3 if worker.group.rank == 2 else 1000
    return pretrain(config, worker=Worker(worker.group, stop=_StopAt(calls)))  # type: ignore[arg-type]


def train_with_a_bad_step(worker: Worker, config: PretrainConfig, steps: set[int]) -> Any:
    """At some steps the loss of the second worker is not a number."""

    def poisoned(parts: Any, batch: Any) -> Any:
        prediction, codes = predict(parts, batch)
        if parts.state.step in steps and parts.group.rank == 1:
            prediction = prediction._replace(loss=prediction.loss * float("nan"))
        return prediction, codes

    module.predict = poisoned
    return pretrain(config, worker=worker)


def test_pretrain__a_bad_step_of_one_worker_is_skipped_by_all(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = pretrain_config(source, tokenizer, tmp_path, **OFTEN)
    first, second = run_ranks(2, train_with_a_bad_step, config, {3})
    assert first == second
    (skipped,) = RunFolder(tmp_path, keep=2).skipped_steps()
    assert (skipped["step"], skipped["loss"], skipped["epoch"]) == (3, None, 1)
    assert len(skipped["images"]) == 8
    assert records(tmp_path)[3]["loss"] is None
    assert all(record["loss"] > 0 for record in records(tmp_path) if record["step"] != 3)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path).values())


def test_pretrain__too_many_bad_steps_in_a_row_end_the_run_for_all(
    source: Path, tokenizer: Path, tmp_path: Path
) -> None:
    config = pretrain_config(source, tokenizer, tmp_path, **OFTEN)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"max_skipped_steps": 2})})
    errors = run_ranks(2, train_with_a_bad_step, config, {1, 3, 4, 5})
    assert [type(error) for error in errors] == [RunError, RunError]
    assert "step 4: the loss is nan" in str(errors[0])
    assert "2 times in a row. These steps were skipped, the model of before is saved." in str(errors[0])
    assert f"See what happens in one: mcbeit replay {tmp_path} --step 4." in str(errors[0])
    assert CheckpointFolder(tmp_path / "checkpoints").steps()[-1] == 5


def test_pretrain__mistakes_are_told_by_all_workers(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = pretrain_config(source, tokenizer, tmp_path, **OFTEN)
    too_large = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": 1000})})
    errors = run_ranks(2, train, too_large)
    assert [type(error) for error in errors] == [ConfigError, ConfigError]
    assert all(error.is_shared for error in errors)
    assert not list(tmp_path.iterdir())
