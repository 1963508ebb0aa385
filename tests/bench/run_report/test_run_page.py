"""The parts of the page that are computed from the log and the config."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mcbeit.bench.run_report.page import curves, facts, training_seconds
from mcbeit.bench.run_report.trained import load_trained
from mcbeit.runfolder import read_records
from mcbeit.sources import open_source


def test_curves__show_what_was_measured() -> None:
    records = [
        {"step": 0, "loss": 5, "target_entropy": 2.0, "lr": 0.0, "images_per_second": 100.0},
        {"step": 10, "loss": 4.0, "target_entropy": 2.5, "lr": 0.1, "images_per_second": 200.0, "knn_top1": 0.5},
    ]
    loss, lr, speed = curves(records)
    assert (loss.title, list(loss.steps), list(loss.values)) == ("loss", [0, 10], [5.0, 4.0])
    assert loss.other == [2.0, 2.5]
    assert (lr.title, speed.title) == ("learning rate", "images per second")
    assert curves([*records, {"step": 20, "knn_top1": 0.6}])[-1].values == [0.5, 0.6]
    assert curves([]) == []


def test_curves__pass_over_what_was_not_finite() -> None:
    """The gradient norm of a step that fp16 has skipped is infinite, which is null in the file."""
    records = [{"step": 0, "gradient_norm": None}, {"step": 10, "gradient_norm": 2.0}]
    (norm,) = curves(records)
    assert (norm.steps, norm.values) == ([10], [2.0])


def test_training_seconds__from_logged_speeds() -> None:
    records = [
        {"step": 0, "images_per_second": 8.0},
        {"step": 5, "knn_top1": 0.5},
        {"step": 10, "images_per_second": 16.0},
    ]
    assert training_seconds(records, batch_size=8) == pytest.approx(1 + 5)
    assert training_seconds([], batch_size=8) == 0


def test_facts__of_a_run(finished: Path, shapes: Path) -> None:
    run = load_trained(finished)
    found = dict(facts(run, list(read_records(finished)), open_source(str(shapes / "train"), "imagefolder")))
    assert found["images"] == f"40 in {shapes / 'train'}; 0 unreadable"
    assert found["patches"] == "4 x 4 of 4 x 4 pixels, images of 16 x 16 pixels"
    assert found["backbone"].startswith("2 blocks, width 32, 2 heads, 0.0")
    assert found["tokenizer"] == "dvae, 16 codes"
    assert found["mask"] == "random, 12 of 16 patches"
    assert (found["training"], found["state"]) == ("10 of 10 steps, batch 8, lr 0.001", "complete")
    assert found["time"].endswith("s in training steps, without evaluation")
    assert "torch" in found["versions"]


def test_facts__without_a_record_of_the_machine(run: Path, shapes: Path) -> None:
    source = open_source(str(shapes / "train"), "imagefolder")
    values = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**values, "git": {"commit": "0123456789abcdef", "dirty": True}}))
    assert dict(facts(load_trained(run), [], source))["commit"] == "0123456789ab with local changes"
    (run / "env.json").write_text(json.dumps({**values, "git": None}))
    assert "commit" not in dict(facts(load_trained(run), [], source))
    (run / "env.json").unlink()
    assert "machine" not in dict(facts(load_trained(run), [], source))


def test_facts__the_weights_that_a_run_started_from(finished: Path, shapes: Path) -> None:
    run, source = load_trained(finished), open_source(str(shapes / "train"), "imagefolder")
    assert "initial weights" not in dict(facts(run, [], source))
    continued = replace(run, config=run.config.model_copy(update={"init": "checkpoint-799.pth"}))
    assert dict(facts(continued, [], source))["initial weights"] == "checkpoint-799.pth"
