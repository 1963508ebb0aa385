"""Repeating a step of a run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tiny import pretrain_config

import mcbeit.pretrain as module
import mcbeit.replay
from mcbeit.cli.main import cli
from mcbeit.errors import RunError
from mcbeit.pretrain import predict, pretrain
from mcbeit.replay import replay

MODEL = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.3}
OFTEN = {
    "model": MODEL,
    "log": {"every_steps": 1, "tensorboard": False},
    "optim": {"steps": 9, "warmup_epochs": 1, "batch_size": 8, "lr": 3e-3},
}


def poisoned(image: int) -> Any:
    """`predict` for a source in which one image makes the loss infinite."""

    def predict_poisoned(parts: Any, batch: Any) -> Any:
        prediction, codes = predict(parts, batch)
        factor = math.inf if image in batch.images.tolist() else 1.0
        return prediction._replace(loss=prediction.loss * factor), codes

    return predict_poisoned


@pytest.fixture(scope="module")
def run(shapes: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which the step of image 5 was skipped in each of its three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "predict", poisoned(5))
        pretrain(pretrain_config(shapes, trained_tokenizer, folder, **OFTEN))
    return folder


def skipped(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def measured(run: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


def test_replay__finds_the_image_and_the_parameters(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target in (module, mcbeit.replay):
        monkeypatch.setattr(target, "predict", poisoned(5))
    found = replay(run)
    note = skipped(run)[-1]
    assert found.step == note["step"]
    assert sorted(image.name for image in found.images) == sorted(note["images"])
    assert not math.isfinite(found.loss)
    (bad,) = (image for image in found.images if not math.isfinite(image.loss))
    assert bad.name.endswith("disc/010.png")  # image 5 of the sorted source
    assert "lm_head.weight" in found.bad_parameters


def test_replay__does_the_same_numbers_as_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "predict", poisoned(5))  # steps before may be skipped ones
    steps = sorted(set(measured(run)) - {note["step"] for note in skipped(run)})
    for step in (steps[0], steps[-1]):
        found = replay(run, step)
        assert found.loss == pytest.approx(measured(run)[step]["loss"], rel=1e-5)
        assert found.gradient_norm == pytest.approx(measured(run)[step]["gradient_norm"], rel=1e-4)
        assert found.bad_parameters == []


def test_replay__starts_from_the_checkpoint_that_was_kept_for_it(run: Path) -> None:
    last = skipped(run)[-1]["step"]
    kept = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))
    assert replay(run).from_step == max(step for step in kept if step <= last)


def test_replay__changes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    replay(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_replay__tells_what_is_no_step(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run; name the folder of one"):
        replay(tmp_path)
    with pytest.raises(RunError, match=r"--step 9 is not a step of .*; it has the steps 0 to 8"):
        replay(run, 9)


def test_replay__without_a_skipped_step_wants_a_number(shapes: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    pretrain(pretrain_config(shapes, trained_tokenizer, tmp_path))
    with pytest.raises(RunError, match=r"no step of .* was skipped; name another with --step"):
        replay(tmp_path)


def test_command__prints_a_line_for_each_image(run: Path) -> None:
    result = CliRunner().invoke(cli, ["replay", str(run), "--step", "0"])
    assert result.exit_code == 0
    assert result.stdout.startswith("step 0, reached from the checkpoint of step 0\nloss ")
    assert result.stdout.count("/shapes/") == 8
    values = json.loads(CliRunner().invoke(cli, ["replay", str(run), "--step", "0", "--json"]).stdout)
    assert values["step"] == 0
    assert len(values["images"]) == 8
