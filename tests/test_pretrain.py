"""The pretraining loop on tiny runs: it learns, logs, saves, resumes, and never waits for the device in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import cut, header_of, write_parquet, write_tar
from tiny import pretrain_config, tokenizer_config, write_shapes
from waits import CountWaits

import mcbeit.pretrain as module
from mcbeit.checkpoint import CheckpointFolder, load_checkpoint
from mcbeit.config import dump, load, validate
from mcbeit.errors import ConfigError, DataError, RunError
from mcbeit.pretrain import batches, pretrain, train_step
from mcbeit.pretrain_setup import PretrainConfig, build
from mcbeit.sources import open_source


@pytest.fixture
def source(shapes: Path) -> Path:
    return shapes


@pytest.fixture
def tokenizer(trained_tokenizer: Path) -> Path:
    return trained_tokenizer


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors["model"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_pretrain__learns(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    optim = {"steps": 60, "warmup_epochs": 1, "batch_size": 8, "lr": 3e-3}
    pretrain(pretrain_config(source, tokenizer, tmp_path, optim=optim))
    found = losses(tmp_path)
    assert np.mean(found[-3:]) < found[0] - 0.3


def test_pretrain__leaves_a_run_folder_that_repeats_the_run(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = pretrain_config(source, tokenizer, tmp_path / "one")
    summary = pretrain(config)
    assert json.loads((tmp_path / "one" / "summary.json").read_text()) == summary
    again = load(PretrainConfig, tmp_path / "one" / "config.yaml", [f"run={tmp_path / 'two'}"])
    pretrain(again)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    record = json.loads((tmp_path / "one" / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 5
    expected = "loss loss_above_entropy masked_accuracy target_entropy neighbours codes_used code_perplexity lr corrupt"
    assert {*expected.split(), "gradient_norm", "images_per_second", "model_flops", "share_of_peak"} <= record.keys()


def test_pretrain__resumes_as_if_never_stopped(
    source: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "model": {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.3},
        "objective": {"target_perplexity": 2, "affinity": "ema"},
        "checkpoint": {"every_epochs": 0.34},
        "log": {"every_steps": 1, "tensorboard": False},
    }
    pretrain(pretrain_config(source, tokenizer, tmp_path / "whole", **settings))

    def stop_at_step_4(parts: Any, *arguments: Any, **options: Any) -> Any:
        if parts.state.step == 4:
            raise KeyboardInterrupt
        return train_step(parts, *arguments, **options)

    monkeypatch.setattr(module, "train_step", stop_at_step_4)
    with pytest.raises(KeyboardInterrupt):
        pretrain(pretrain_config(source, tokenizer, tmp_path / "parts", **settings))
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "summary.json").exists()
    pretrain(pretrain_config(source, tokenizer, tmp_path / "parts", **settings), resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_pretrain__of_a_finished_run_only_tells(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    config = pretrain_config(source, tokenizer, tmp_path)
    summary = pretrain(config)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert pretrain(config, resume=True) == summary
    assert (tmp_path / "metrics.jsonl").read_text() == before
    with pytest.raises(RunError, match="exists already"):
        pretrain(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"targets": "hard", "refine_weight": 0}},
        {"objective": {"temperature": 1.0, "omega": 1.0, "similarity_temperature": 0.1, "detach_similarity": True}},
        {"objective": {"target_perplexity": 3, "affinity": "ema"}},
        {"mask": {"kind": "block", "ratio": 0.4, "min_block": 2}},
        {"mask": {"kind": "inverse_block"}},
        {"crop": {"color_jitter": 0.4}},
        {"compute": {"gradient_checkpointing": True}},
        {"compute": {"precision": "bf16"}},
        {"compute": {"shard": "fsdp"}},  # of one worker: all of it
        {"model": {"dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "position": "relative+learned"}},
    ],
    ids=str,
)
def test_pretrain__takes_steps_with_every_option(
    source: Path, tokenizer: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    optim = {"steps": 2, "batch_size": 8, "lr": 1e-3}
    summary = pretrain(pretrain_config(source, tokenizer, tmp_path, optim=optim, **changes))
    assert summary["step"] == 1
    assert np.isfinite(summary["loss"])


def test_pretrain__works_for_one_step_and_writes_tensorboard(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    optim = {"steps": 1, "warmup_epochs": 10, "batch_size": 8}
    summary = pretrain(pretrain_config(source, tokenizer, tmp_path, optim=optim, log={"every_steps": 5}))
    assert summary["lr"] == pytest.approx(1.5e-3)
    assert list((tmp_path / "tensorboard").iterdir())


def test_pretrain__accumulates_to_the_same_gradient(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    weights = []
    for parts in (1, 2, 4):
        optim = {"steps": 2, "batch_size": 8, "accumulate": parts, "clip_grad": None, "eps": 1e-3}
        model = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0}
        pretrain(pretrain_config(source, tokenizer, tmp_path / str(parts), optim=optim, model=model))
        weights.append(final_weights(tmp_path / str(parts)))
    for other in weights[1:]:
        for name, expected in weights[0].items():
            torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-5)


def test_pretrain__uses_several_masks_per_image(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    data = {"source": str(source), "num_workers": 0, "masks_per_image": 4}
    config = pretrain_config(source, tokenizer, tmp_path, data=data)
    images = open_source(str(source))
    parts = build(config, images)
    (batch,) = batches(parts, images, range(1))
    assert batch.views[0].shape[0] == 2  # crops: 8 images with their masks
    assert batch.masks.shape == (8, 16)
    assert len({tuple(mask.tolist()) for mask in batch.masks}) > 4
    assert pretrain(config)["epoch"] == 2


def test_pretrain__judges_with_labels_and_keeps_the_best(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    data = {"source": str(source), "kind": "imagefolder", "num_workers": 0}
    judge = {"every_epochs": 1, "num_queries": 6}
    summary = pretrain(pretrain_config(source, tokenizer, tmp_path, data=data, eval=judge))
    assert 0 <= summary["knn_top1"] <= 1
    assert summary["best"]["metric"] == "knn_top1"
    assert (tmp_path / "checkpoints" / f"step-{summary['best']['step']:08d}").is_dir()


def test_pretrain__lists_corrupt_images_and_shows_them(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shapes(tmp_path / "images")
    (source / "bad.jpg").write_bytes(b"not an image")
    data = {"source": str(source), "num_workers": 0, "max_corrupt_fraction": 0.5}
    assert pretrain(pretrain_config(source, tokenizer, tmp_path / "run", data=data))["corrupt"] == 1
    assert "1 of 25 images cannot be read" in capsys.readouterr().err
    strict = {"source": str(source), "num_workers": 0}
    with pytest.raises(DataError, match=r"more than data\.max_corrupt_fraction=0\.01"):
        pretrain(pretrain_config(source, tokenizer, tmp_path / "strict", data=strict))


def test_pretrain__checks_everything_before_work(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(DataError, match=r"data\.source is not set"):
        pretrain(pretrain_config(source, tokenizer, run, data={}))
    with pytest.raises(ConfigError, match=r"optim\.batch_size=64 needs 64 images per step"):
        pretrain(pretrain_config(source, tokenizer, run, optim={"batch_size": 64}))
    with pytest.raises(ConfigError, match=r"preprocess\.image_size=18 must be a multiple"):
        pretrain(pretrain_config(source, tokenizer, run, preprocess={"image_size": 18}))
    with pytest.raises(DataError, match="a probe needs labels"):
        pretrain(pretrain_config(source, tokenizer, run, eval={"every_epochs": 1, "kind": "folder"}))
    with pytest.raises(DataError, match="there is no image source at 'nowhere'"):
        pretrain(pretrain_config(source, tokenizer, run, eval={"queries": "nowhere"}))
    with pytest.raises(RunError, match="there is no trained tokenizer"):
        pretrain(pretrain_config(source, tmp_path / "nowhere", run))
    assert not run.exists()


def test_pretrain__checks_the_tokenizer_that_it_would_train_first(source: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump(tokenizer_config(source, tmp_path / "unused", image_size=18)))

    def config(**changes: Any) -> PretrainConfig:
        values = pretrain_config(source, "none", tmp_path / "run").model_dump()
        return validate(PretrainConfig, {**values, "tokenizer": {"kind": "dvae", "preset": str(preset)}, **changes})

    with pytest.raises(ConfigError, match=r"image_size=18 must be a multiple of model\.stride=4"):
        pretrain(config())
    preset.write_text(dump(tokenizer_config(source, tmp_path / "unused")))
    with pytest.raises(ConfigError, match=r"target_perplexity=16 must be less than the tokenizer's 16 codes"):
        pretrain(config(objective={"target_perplexity": 16}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").touch()
    with pytest.raises(ConfigError, match=r"mine' is neither a tokenizer run nor free for one; name another place"):
        pretrain(config(tokenizer={"kind": "dvae", "preset": str(preset), "path": str(tmp_path / "mine")}))
    with pytest.raises(ConfigError, match=r"image_size=4 is one patch of model\.patch_size=4"):
        pretrain(config(preprocess={"image_size": 4}))
    assert not (tmp_path / "run").exists()


def test_pretrain__a_mistake_found_late_does_not_block_the_folder(
    source: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="the targets are uniform"):
        pretrain(pretrain_config(source, tokenizer, tmp_path, objective={"temperature": 1e6}))
    assert pretrain(pretrain_config(source, tokenizer, tmp_path))["step"] == 5


def test_pretrain__stops_before_a_lost_model_is_saved(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    optim = {"steps": 12, "batch_size": 8, "lr": 1e12, "min_lr": 0, "clip_grad": None, "warmup_epochs": 0.5}
    with pytest.raises(RunError, match=r"5 times in a row.*lower optim\.lr"):
        pretrain(pretrain_config(source, tokenizer, tmp_path, optim=optim, log={"every_steps": 100}))
    assert not (tmp_path / "summary.json").exists()
    for step in CheckpointFolder(tmp_path / "checkpoints").steps():
        weights = load_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}").tensors["model"]
        assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_pretrain__resumes_from_the_checkpoint_before_a_damaged_one(
    source: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"checkpoint": {"every_epochs": 1}}
    whole = pretrain(pretrain_config(source, tokenizer, tmp_path / "whole", **settings))
    pretrain(pretrain_config(source, tokenizer, tmp_path / "run", **settings))
    (tmp_path / "run" / "summary.json").unlink()
    file = tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    again = pretrain(pretrain_config(source, tokenizer, tmp_path / "run", **settings), resume=True)
    assert again["loss"] == whole["loss"]
    assert "warning: the checkpoint" in capsys.readouterr().err


def test_pretrain__refuses_targets_that_teach_nothing(source: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the targets are uniform"):
        pretrain(pretrain_config(source, tokenizer, tmp_path / "a", objective={"temperature": 1e6}))
    with pytest.raises(ConfigError, match="must be less than the tokenizer's 16 codes"):
        pretrain(pretrain_config(source, tokenizer, tmp_path / "b", objective={"target_perplexity": 17}))


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("affinity", ["online", "ema"])
def test_train_step__never_waits_for_the_device(
    source: Path, tokenizer: Path, tmp_path: Path, affinity: str, measured: bool
) -> None:
    objective, data = {"affinity": affinity}, {"source": str(source), "num_workers": 0, "masks_per_image": 2}
    config = pretrain_config(source, tokenizer, tmp_path, objective=objective, data=data)
    images = open_source(str(source))
    parts = build(config, images)
    (batch,) = batches(parts, images, range(1))
    train_step(parts, batch, 1e-3, measured=measured)  # what is kept is made now
    with CountWaits() as counter:
        result = train_step(parts, batch, 1e-3, measured=measured)
        assert counter.waits == 0
        float(result.loss)
        assert counter.waits == 1
    assert bool(result.measurements) == measured


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_pretrain__on_shards_resumes_as_on_a_folder(
    kind: str, source: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"checkpoint": {"every_epochs": 0.34}, "log": {"every_steps": 1, "tensorboard": False}}
    files = sorted(source.rglob("*.png"))
    images = {str(path.relative_to(source)): path.read_bytes() for path in files}
    if kind == "tar":
        for i in range(2):
            write_tar(tmp_path / "shards" / f"{i}.tar", dict(list(images.items())[12 * i : 12 * i + 12]))
    else:
        write_parquet(tmp_path / "shards" / "images.parquet", list(images.values()))
    pretrain(pretrain_config(source, tokenizer, tmp_path / "folder", **settings))

    def stop_at_step_4(parts: Any, *arguments: Any, **options: Any) -> Any:
        if parts.state.step == 4:
            raise KeyboardInterrupt
        return train_step(parts, *arguments, **options)

    monkeypatch.setattr(module, "train_step", stop_at_step_4)
    with pytest.raises(KeyboardInterrupt):
        pretrain(pretrain_config(tmp_path / "shards", tokenizer, tmp_path / "run", **settings))
    monkeypatch.undo()
    pretrain(pretrain_config(tmp_path / "shards", tokenizer, tmp_path / "run", **settings), resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "folder")


def test_pretrain__counts_the_images_that_damaged_shards_have_lost(
    source: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {str(path.relative_to(source)): path.read_bytes() for path in sorted(source.rglob("*.png"))}
    for i in range(2):
        path = write_tar(tmp_path / "shards" / f"{i}.tar", dict(list(images.items())[12 * i : 12 * i + 12]))
    cut(path, header_of(path, list(images)[20]))
    data = {"source": str(tmp_path / "shards"), "num_workers": 0, "max_corrupt_fraction": 0.2}
    summary = pretrain(pretrain_config(source, tokenizer, tmp_path / "run", data=data))
    assert summary["corrupt"] == 4
    told = capsys.readouterr().err
    assert "warning: 1 files cannot be read to their end, which loses about 4 images" in told
    assert f"about 4 of 24 images cannot be read; {tmp_path / 'run' / 'corrupt.txt'} lists them" in told
    with pytest.raises(DataError, match="about 4 of 24 images cannot be read, more than data"):
        pretrain(pretrain_config(source, tokenizer, tmp_path / "two", data={**data, "max_corrupt_fraction": 0.1}))
