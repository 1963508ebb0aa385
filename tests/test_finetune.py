"""The finetuning loop on tiny runs: it learns, judges, saves, resumes; its runs are opened like any other weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official import official_state, pretrain_checkpoint, save
from ranks import run_ranks
from tiny import CHANNELS, finetune_config, pretrain_config, stopped_after, write_planes, write_shapes
from waits import CountWaits

import mcbeit.finetune as module
from mcbeit.checkpoint import CheckpointFolder, load_checkpoint
from mcbeit.config import load
from mcbeit.encoder import load_encoder
from mcbeit.epochs import read_predictions
from mcbeit.errors import ConfigError, DataError, Interrupted, RunError, WeightsError
from mcbeit.finetune import FinetuneJob, finetune, loss_of, open_images, train_step
from mcbeit.finetune_setup import FinetuneConfig, build
from mcbeit.pretrain import pretrain
from mcbeit.relative_position import resize_table
from mcbeit.replay import replay
from mcbeit.runfolder import RunFolder
from mcbeit.start import with_weights
from mcbeit.weight_conversion import convert_weights
from mcbeit.weights import read_weights
from mcbeit.worker import Worker

OFTEN: dict[str, Any] = {"log": {"every_steps": 1, "tensorboard": False}, "checkpoint": {"every_epochs": 0.34}}
UNMIXED = {"policy": None, "erase": 0, "mixup": 0, "cutmix": 0}
MODEL = {"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, "init": "xavier", "drop_path": 0.3}
TABLE = "attn.relative_position_bias_table"


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 test images, an odd number."""
    return write_shapes(tmp_path_factory.mktemp("tests") / "val", count=11, seed=1)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the official pretraining: 32 wide, 2 blocks, 16 px in 4 x 4 patches."""
    return save(pretrain_checkpoint(official_state("pretrain")), tmp_path_factory.mktemp("official") / "pt.pth")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def learned(run: Path) -> list[dict[str, Any]]:
    """The measurements without those of time."""
    timed = {"images_per_second", "model_flops", "share_of_peak"}
    return [{name: value for name, value in record.items() if name not in timed} for record in records(run)]


def final(run: Path, group: str = "model") -> dict[str, torch.Tensor]:
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors[group]


# the loop


def test_finetune__learns(shapes: Path, tmp_path: Path) -> None:
    optim = {"steps": 60, "warmup_epochs": 1, "batch_size": 8, "lr": 1e-2, "layer_decay": 1.0}
    changes: dict[str, Any] = {"augment": UNMIXED, "head_init_scale": 1.0, "crop": {"scale": [0.6, 1.0]}}
    judged = {"source": str(shapes), "every_epochs": 10}
    summary = finetune(finetune_config(shapes, tmp_path, optim=optim, eval=judged, **changes))
    assert summary["loss"] < records(tmp_path)[0]["loss"] - 0.2
    assert summary["top1"] > 0.8
    assert summary["judged"]["best"]["top1"] >= summary["judged"]["last"]["top1"] == summary["top1"]


def test_finetune__leaves_a_run_folder_that_repeats_the_run(shapes: Path, tests: Path, tmp_path: Path) -> None:
    summary = finetune(finetune_config(shapes, tmp_path / "one", eval={"source": str(tests)}))
    assert json.loads((tmp_path / "one" / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "one" / "classes.json").read_text())["classes"] == ["disc", "square"]
    assert records(tmp_path / "one")[-1].keys() >= {"loss", "lr", "gradient_norm", "top1", "test_loss", "corrupt"}
    assert summary["best"]["metric"] == "top1"
    assert (tmp_path / "one" / "checkpoints" / f"step-{summary['best']['step']:08d}").is_dir()
    predicted = read_predictions(tmp_path / "one", "last")
    assert float((predicted == [0] * 6 + [1] * 5).mean()) == pytest.approx(summary["top1"])
    again = load(FinetuneConfig, tmp_path / "one" / "config.yaml", [f"run={tmp_path / 'two'}"])
    finetune(again)
    assert learned(tmp_path / "one") == learned(tmp_path / "two")
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_finetune__resumes_as_if_never_stopped(shapes: Path, tests: Path, tmp_path: Path) -> None:
    optim = {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 6, "lr": 1e-3, "ema_decay": 0.9}
    judged = {"source": str(tests), "held_out": 0.25}
    settings: dict[str, Any] = {**OFTEN, "model": MODEL, "optim": optim, "eval": judged}
    whole = finetune(finetune_config(shapes, tmp_path / "whole", **settings))
    config = finetune_config(shapes, tmp_path / "parts", **settings)
    with pytest.raises(Interrupted, match="stopped after 4 steps"):
        finetune(config, worker=stopped_after(4))
    assert finetune(config, resume=True)["judged"] == whole["judged"]
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    for group in ("model", "teacher"):
        one, two = final(tmp_path / "whole", group), final(tmp_path / "parts", group)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole["judged"]["best"]["selection"] == "held-out images"
    assert whole["best"]["metric"] == "held_out_top1"


def test_finetune__notes_tell_of_the_images_of_both_kinds(shapes: Path, tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "val", count=4)
    (folder / "disc" / "notes.doc").touch()
    config = finetune_config(shapes, tmp_path / "run", eval={"source": str(folder)})
    images = open_images(config)
    job = FinetuneJob(build(config, images), images)
    assert job.notes == ["test images: 1 files of other kinds are passed over: 1 x .doc"]


def test_finetune__of_a_finished_run_only_tells(shapes: Path, tmp_path: Path) -> None:
    config = finetune_config(shapes, tmp_path)
    summary = finetune(config)
    assert finetune(config, resume=True) == summary
    with pytest.raises(RunError, match="exists already"):
        finetune(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"steps": 1, "batch_size": 9, "accumulate": 3}},
        {"augment": {"policy": None}, "crop": {"color_jitter": 0.4}},
        {"model": {**MODEL, "bias_tables": "shared", "final_norm": "tokens"}},
        {"optim": {"steps": 1, "batch_size": 7, "layer_rule": "clean", "clip_grad": 1.0}},
        {"compute": {"gradient_checkpointing": True}},
        {"compute": {"precision": "bf16"}},
        {"compute": {"shard": "fsdp"}},  # of one worker: all of it
    ],
    ids=str,
)
def test_finetune__takes_a_step_with_every_option(shapes: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = finetune(finetune_config(shapes, tmp_path, **{"optim": {"steps": 1, "batch_size": 8}, **changes}))
    assert summary["step"] == 0
    assert np.isfinite(summary["loss"])
    assert 0 <= summary["top1"] <= 1


def test_finetune__accumulates_to_the_same_gradient(shapes: Path, tmp_path: Path) -> None:
    found = []
    for parts in (1, 2):
        optim = {"steps": 2, "batch_size": 8, "accumulate": parts, "eps": 1e-3, "warmup_epochs": 0}
        finetune(finetune_config(shapes, tmp_path / str(parts), optim=optim))  # mixing is of the whole share
        found.append(final(tmp_path / str(parts)))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, rtol=1e-4, atol=1e-5)


def test_finetune__learns_from_a_share_of_the_labels(shapes: Path, tmp_path: Path) -> None:
    optim = {"steps": 1, "batch_size": 4}
    config = finetune_config(shapes, tmp_path, label_fraction=0.25, optim=optim, eval={"source": str(shapes)})
    images = open_images(config)
    assert (len(images.train), len(images.test.source)) == (6, 24)
    assert finetune(config)["epoch"] == 1


def test_finetune__of_other_channels(tmp_path: Path) -> None:
    source = write_planes(tmp_path / "planes", count=8)
    data = {**CHANNELS["data"], "source": str(source)}
    changes: dict[str, Any] = {"data": data, "preprocess": CHANNELS["preprocess"], "augment": {"policy": None}}
    summary = finetune(finetune_config(source, tmp_path / "run", optim={"steps": 1, "batch_size": 4}, **changes))
    assert np.isfinite(summary["loss"])
    changes |= {"init": str(tmp_path / "run"), "model": {}, "preprocess": {}}
    assert with_weights(finetune_config(source, tmp_path / "more", **changes)).preprocess.mean == (
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
    )
    with pytest.raises(ConfigError, match=r"have 5 numbers each, for data\.channels=3"):
        with_weights(finetune_config(source, tmp_path / "more", **{**changes, "data": {"source": str(source)}}))


def test_finetune__lists_corrupt_images(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "images", count=16)
    (source / "disc" / "000.png").write_bytes(b"no image")
    data = {"source": str(source), "num_workers": 0, "max_corrupt_fraction": 0.1}
    summary = finetune(finetune_config(source, tmp_path / "run", data=data))
    assert summary["corrupt"] == 1
    assert "000.png\tnot a JPEG" in (tmp_path / "run" / "corrupt.txt").read_text()
    assert read_predictions(tmp_path / "run", "last")[0] == -1
    with pytest.raises(DataError, match=r"more than data\.max_corrupt_fraction=0 allows"):
        finetune(finetune_config(source, tmp_path / "two", data={**data, "max_corrupt_fraction": 0}))


def test_finetune__skips_a_bad_step(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(parts: Any, piece: Any) -> Any:
        return loss_of(parts, piece) * (float("nan") if parts.state.step in bad else 1.0)

    bad = {2}
    monkeypatch.setattr(module, "loss_of", poisoned)
    finetune(finetune_config(shapes, tmp_path / "one", **OFTEN))
    (skipped,) = RunFolder(tmp_path / "one", keep=2).skipped_steps()
    assert (skipped["step"], len(skipped["images"])) == (2, 8)
    assert all(bool(tensor.isfinite().all()) for tensor in final(tmp_path / "one").values())
    bad |= {1, 3}
    optim = {"steps": 6, "batch_size": 8, "max_skipped_steps": 2}
    with pytest.raises(RunError, match=r"2 times in a row.*the model of before is saved\. Lower optim\.lr"):
        finetune(finetune_config(shapes, tmp_path / "two", optim=optim))
    with pytest.raises(RunError, match="is a finetune run; only steps of pretraining runs can be repeated"):
        replay(tmp_path / "one")


def test_train_step__never_waits_for_the_device(shapes: Path, tmp_path: Path) -> None:
    config = finetune_config(shapes, tmp_path)
    images = open_images(config)
    parts = build(config, images)
    (batch,) = FinetuneJob(parts, images).batches(range(1))
    train_step(parts, batch, 1e-3)  # what is kept is made now
    with CountWaits() as counter:
        result = train_step(parts, batch, 1e-3)
        assert counter.waits == 0
        float(result.loss)
        assert counter.waits == 1


# several workers


def train_twice(worker: Worker, configs: list[FinetuneConfig]) -> list[dict[str, Any]]:
    return [finetune(config, worker=worker) for config in configs]


def test_finetune__two_workers_make_the_run_of_one(shapes: Path, tests: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {**OFTEN, "model": MODEL, "augment": UNMIXED, "eval": {"source": str(tests)}}
    optim = {"epochs": 2, "warmup_epochs": 0.5, "batch_size": 8, "lr": 1e-3, "accumulate": 2}
    finetune(finetune_config(shapes, tmp_path / "alone", **settings))
    ways: dict[str, dict[str, Any]] = {"ddp": {"optim": optim}, "fsdp": {"compute": {"shard": "fsdp"}}}
    configs = [finetune_config(shapes, tmp_path / name, **{**settings, **way}) for name, way in ways.items()]
    first, second = run_ranks(2, train_twice, configs)
    assert first == second
    for name in ways:
        for one, two in zip(records(tmp_path / "alone"), records(tmp_path / name), strict=True):
            assert two.keys() == one.keys()
            for key in one.keys() & {"loss", "gradient_norm", "top1", "test_loss"}:
                assert two[key] == pytest.approx(one[key], rel=1e-4), key
        for key, tensor in final(tmp_path / "alone").items():
            torch.testing.assert_close(final(tmp_path / name)[key], tensor, rtol=1e-3, atol=1e-5)
        predictions = [read_predictions(tmp_path / run, "last").tolist() for run in ("alone", name)]
        assert predictions[0] == predictions[1]


# weights in and out


def test_build__gives_each_block_the_shared_table(shapes: Path, tmp_path: Path, pretrained: Path) -> None:
    config = with_weights(finetune_config(shapes, tmp_path, init=str(pretrained), model={}, preprocess={}))
    assert config.model.shape == (32, 2, 2)
    assert (config.model.bias_tables, config.model.final_norm) == ("per-block", "pooled")
    assert (config.preprocess.image_size, config.preprocess.mean) == (16, (0.485, 0.456, 0.406))
    parts = build(config, open_images(config))
    state, theirs = parts.model.backbone.state_dict(), official_state("pretrain")
    for block in range(2):
        assert torch.equal(state[f"blocks.{block}.{TABLE}"], theirs[f"rel_pos_bias.{TABLE[5:]}"])
    assert torch.equal(state["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
    assert (state["fc_norm.weight"] == 1).all()
    notes = parts.state.numbers["init"]
    assert "starts anew: fc_norm.weight, fc_norm.bias" in notes[0]
    assert notes[1] == "the classifier starts anew: the weights have none"


def test_build__at_another_size(shapes: Path, tmp_path: Path, pretrained: Path) -> None:
    values: dict[str, Any] = {"init": str(pretrained), "model": {}, "preprocess": {"image_size": 24}}
    config = with_weights(finetune_config(shapes, tmp_path, **values))
    parts = build(config, open_images(config))
    table = resize_table(official_state("pretrain")[f"rel_pos_bias.{TABLE[5:]}"], (4, 4), (6, 6))
    assert torch.equal(parts.model.backbone.state_dict()[f"blocks.0.{TABLE}"], table)


def test_finetune__from_a_pretraining_run_and_then_from_its_own(
    shapes: Path, trained_tokenizer: Path, tmp_path: Path
) -> None:
    grey = {"image_size": 16, "crop_fraction": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    optim = {"steps": 1, "batch_size": 8}
    pretrain(pretrain_config(shapes, trained_tokenizer, tmp_path / "pt", optim=optim, preprocess=grey))
    open_keys: dict[str, Any] = {"model": {}, "preprocess": {}, "optim": optim}
    summary = finetune(finetune_config(shapes, tmp_path / "ft", init=str(tmp_path / "pt"), **open_keys))
    assert summary["init"][0].startswith(f"starts from {tmp_path / 'pt'}")
    stored = load(FinetuneConfig, tmp_path / "ft" / "config.yaml")
    assert (stored.preprocess.mean, stored.preprocess.crop_fraction) == ((0.5, 0.5, 0.5), 1.0)
    again = finetune(finetune_config(shapes, tmp_path / "more", init=str(tmp_path / "ft"), **open_keys))
    assert again["init"][1] == "the classifier of 2 classes goes on, which is right for the same images only"

    weights = read_weights(tmp_path / "ft")
    assert (weights.num_classes, weights.model.bias_tables, weights.image_size) == (2, "per-block", 16)
    vectors = load_encoder(tmp_path / "ft").embed([shapes / "disc" / "000.png"])
    assert vectors.shape == (1, 32)
    convert_weights(tmp_path / "ft", tmp_path / "kept.safetensors", "mcbeit")
    kept = read_weights(tmp_path / "kept.safetensors").tensors
    assert torch.equal(kept["head.weight"], final(tmp_path / "ft")["head.weight"])


def test_finetune__of_averaged_weights_these_are_what_counts(shapes: Path, tmp_path: Path) -> None:
    optim = {"steps": 3, "warmup_epochs": 0, "batch_size": 8, "lr": 1e-2, "ema_decay": 0.5}
    finetune(finetune_config(shapes, tmp_path, optim=optim))
    averaged, own = final(tmp_path, "teacher")["head.weight"], final(tmp_path)["head.weight"]
    assert not torch.equal(averaged, own)
    assert torch.equal(read_weights(tmp_path).tensors["head.weight"], averaged)
    assert torch.equal(read_weights(tmp_path / "checkpoints" / "step-00000003").tensors["head.weight"], averaged)


def test_finetune__goes_on_without_the_file_of_its_weights(shapes: Path, tmp_path: Path) -> None:
    file = save(pretrain_checkpoint(official_state("pretrain")), tmp_path / "pt.pth")
    config = with_weights(finetune_config(shapes, tmp_path / "run", init=str(file), model={}, **OFTEN))
    with pytest.raises(Interrupted):
        finetune(config, worker=stopped_after(2))
    file.unlink()
    assert finetune(config, resume=True)["step"] == 5


# mistakes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"mixing": 1}}, "unknown key 'augment.mixing'"),
        ({"optim": {"layer_decai": 1}}, "unknown key 'optim.layer_decai'; did you mean 'optim.layer_decay'"),
        ({"label_fraction": 0}, "label_fraction: input should be greater than 0"),
        ({"eval": {"held_out": 1}}, r"eval\.held_out: input should be less than 1"),
        ({"data": {"masks_per_image": 2}}, r"data\.masks_per_image is for pretraining"),
        ({"crop": {"color_jitter": 0.4}}, r"set it to 0, or augment\.policy to null"),
        ({"data": {"channels": 5}}, r"preprocess\.mean and preprocess\.std have 3 numbers each, for data\.channels=5"),
        ({"compute": {"shard": "fsdp"}, "optim": {"ema_decay": 0.9}}, r"does not go with optim\.ema_decay"),
    ],
)
def test_finetune_config__refuses(shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune_config(shapes, tmp_path, **changes)


def test_finetune_config__randaugment_is_for_colours(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is for colours; data\.channels is 5: set augment\.policy=null"):
        finetune_config(shapes, tmp_path, data=CHANNELS["data"], preprocess=CHANNELS["preprocess"])


def test_finetune__tells_a_mistake_before_any_work(shapes: Path, tmp_path: Path, pretrained: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"init is not set; name the weights to start from, .* init=random"):
        finetune(finetune_config(shapes, run, init=None))
    with pytest.raises(ConfigError, match="batch_size=100 needs 100 images per step, but the source has 24"):
        finetune(finetune_config(shapes, run, optim={"batch_size": 100}))
    with pytest.raises(ConfigError, match=r"image_size=18 must be a multiple of model\.patch_size=4"):
        finetune(finetune_config(shapes, run, preprocess={"image_size": 18}))
    with pytest.raises(ConfigError, match=r"model\.depth: 3 in the config, 2 in the weights"):
        finetune(finetune_config(shapes, run, init=str(pretrained), model={"depth": 3}))
    with pytest.raises(WeightsError, match="there are no weights at"):
        finetune(finetune_config(shapes, run, init=str(tmp_path / "typo.pth")))
    with pytest.raises(DataError, match="there is no image source at"):
        finetune(finetune_config(shapes, run, eval={"source": str(tmp_path / "nowhere")}))
    assert not run.exists()


def test_finetune__refuses_labels_that_have_changed(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "images", count=16)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*.png"))
    listed = source / "list.txt"
    listed.write_text("".join(f"{name} {'square' in name:d}\n" for name in names))
    changes: dict[str, Any] = {**OFTEN, "eval": {"source": str(listed)}}
    with pytest.raises(Interrupted):
        finetune(finetune_config(listed, tmp_path / "run", **changes), worker=stopped_after(2))
    listed.write_text("".join(f"{name} {'disc' in name:d}\n" for name in names))
    with pytest.raises(RunError, match=r"the labels of the run '.*' have changed"):
        finetune(finetune_config(listed, tmp_path / "run", **changes), resume=True)
    assert CheckpointFolder(tmp_path / "run" / "checkpoints").steps()[-1] == 2
