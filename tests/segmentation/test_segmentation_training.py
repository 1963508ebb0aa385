"""The segmentation job on tiny runs: it learns, judges, resumes to the bit, and refuses what cannot work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official import Shape, official_state, pretrain_checkpoint, save
from PIL import Image
from ranks import run_ranks
from scenes import segmentation_config, write_ade20k
from tiny import stopped_after

from mcbeit.checkpoint import load_checkpoint
from mcbeit.config import load
from mcbeit.device import PRECISIONS
from mcbeit.errors import ConfigError, DataError, Interrupted, RunError, WeightsError
from mcbeit.group import ALONE
from mcbeit.jobs import cost_lines, load_job
from mcbeit.relative_position import resize_table
from mcbeit.segmentation.judging import UNREADABLE, Windows, find_classes, judge
from mcbeit.segmentation.loading import load_segmenter
from mcbeit.segmentation.memory import step_memory
from mcbeit.segmentation.overlap import overlap
from mcbeit.segmentation.scene_crops import read_scene
from mcbeit.segmentation.scenes import open_scenes
from mcbeit.segmentation.setup import SegmentationConfig, SegmentationOptimConfig, build, make_segmenter
from mcbeit.segmentation.training import read_kept_areas, segment
from mcbeit.start import with_weights
from mcbeit.worker import Worker

OFTEN: dict[str, Any] = {"log": {"every_steps": 1, "tensorboard": False}, "checkpoint": {"every_epochs": 0.5}}


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade20k(tmp_path_factory.mktemp("scenes") / "ade")


def records(run: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "model_flops", "share_of_peak"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors["model"]


def test_segment__learns_scenes(ade: Path, tmp_path: Path) -> None:
    optim = {"steps": 200, "batch_size": 8, "lr": 3e-3, "warmup_steps": 10, "layer_decay": 1.0}
    summary = segment(segmentation_config(ade, tmp_path, optim=optim, eval={"every_epochs": 1000}))
    assert summary["loss"] < 0.4
    assert summary["mean_iou"] > 0.5
    assert summary["pixel_accuracy"] > 0.85
    areas = read_kept_areas(tmp_path, "last")
    assert areas.shape == (3, 3, 3)
    assert overlap(areas.sum(axis=0)).mean_iou == summary["mean_iou"]


def test_segment__resumes_as_if_never_stopped(ade: Path, tmp_path: Path) -> None:
    whole = segment(segmentation_config(ade, tmp_path / "whole", **OFTEN))
    config = segmentation_config(ade, tmp_path / "parts", **OFTEN)
    with pytest.raises(Interrupted, match="stopped after 4 steps"):
        segment(config, worker=stopped_after(4))
    assert segment(config, resume=True) == {**whole, **_times(segment(config, resume=True))}
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    one, two = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole["best"]["metric"] == "mean_iou"
    assert whole["judged"]["best"]["mean_iou"] >= whole["judged"]["last"]["mean_iou"]
    again = load(SegmentationConfig, tmp_path / "whole" / "config.yaml", [])
    assert again == segmentation_config(ade, tmp_path / "whole", **OFTEN)
    with pytest.raises(RunError, match="exists already"):
        segment(again)


def _times(summary: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in summary.items() if name in ("images_per_second", "model_flops", "share_of_peak")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"steps": 1, "batch_size": 8, "accumulate": 2}},
        {"optim": {"steps": 1, "batch_size": 4, "layer_rule": "clean", "clip_grad": 1.0, "power": 0.9}},
        {"optim": {"steps": None, "epochs": 1, "batch_size": 4}},
        {"eval": {"scales": [0.5, 1.0, 1.75], "flip": True, "stride": 20, "batch_size": 3}},
        {"scenes": {"short_side": 20, "distort_colors": False}},
        {"compute": {"gradient_checkpointing": True, "precision": "bf16"}},
        {"head": {"taps": [0, 1, 2, 3]}, "model": {"dim": 16, "depth": 4, "num_heads": 2, "patch_size": 4}},
    ],
    ids=str,
)
def test_segment__takes_a_step_with_every_option(ade: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = segment(segmentation_config(ade, tmp_path, **{"optim": {"steps": 1, "batch_size": 4}, **changes}))
    assert np.isfinite(summary["loss"])
    assert 0 <= summary["mean_iou"] <= 1


def test_segment__of_two_classes(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", classes=("ground", "shape"))
    summary = segment(segmentation_config(root, tmp_path / "run", optim={"steps": 1, "batch_size": 4}))
    assert np.isfinite(summary["loss"])
    assert read_kept_areas(tmp_path / "run", "last").shape == (3, 3, 2)
    assert load_segmenter(tmp_path / "run").model.num_classes == 2


def test_segment__starts_from_pretrained_weights(ade: Path, tmp_path: Path) -> None:
    state = official_state("pretrain", Shape(depth=4))
    file = save(pretrain_checkpoint(state), tmp_path / "pt.pth")
    config = with_weights(segmentation_config(ade, tmp_path / "run", init=str(file), model={}))
    assert config.model.shape == (32, 4, 2)
    model = build(config, 3).model
    table = resize_table(state["rel_pos_bias.relative_position_bias_table"], (4, 4), (8, 8))
    for block in model.backbone.blocks:
        torch.testing.assert_close(block.attn.relative_position_bias_table.detach(), table)
    torch.testing.assert_close(model.backbone.blocks[2].mlp.fc1.weight.detach(), state["blocks.2.mlp.fc1.weight"])
    summary = segment(config)
    assert "resized" in summary["init"][0]
    with pytest.raises(WeightsError, match="nowhere"):
        segment(segmentation_config(ade, tmp_path / "other", init=str(tmp_path / "nowhere"), model={}))


def test_judge__counts_unreadable_scenes_and_leaves_them_out(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", val=4)
    (root / "images" / "validation" / "ADE_val_00000002.jpg").write_bytes(b"no image")
    segment(segmentation_config(root, tmp_path / "run", optim={"steps": 1, "batch_size": 4}))
    areas = read_kept_areas(tmp_path / "run", "last")
    assert (areas[1] == UNREADABLE).all()
    assert (areas[[0, 2, 3]] >= 0).all()


def test_segment__refuses_test_scenes_without_any_label(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", val=1)
    Image.new("L", (48, 40), 0).save(root / "annotations" / "validation" / "ADE_val_00000001.png")
    with pytest.raises(DataError, match=r"none of the 1 test images, such as .*ADE_val_00000001.jpg'"):
        segment(segmentation_config(root, tmp_path / "run", optim={"steps": 1, "batch_size": 4}))


def test_find_classes__several_looks_average_probabilities(ade: Path, tmp_path: Path) -> None:
    config = segmentation_config(ade, tmp_path)
    parts = build(config, 3)
    pixels, _ = read_scene(open_scenes(ade).val, 0)
    common = (config.scenes, config.preprocess)

    def find(windows: Windows, image: np.ndarray = pixels) -> np.ndarray:
        return find_classes(parts.model, image, *common, windows, PRECISIONS["fp32"]).numpy()

    plain, mirrored = Windows(20, 4), Windows(20, 4, (1.0,), True)
    both, turned = find(mirrored), find(mirrored, np.ascontiguousarray(pixels[:, ::-1]))
    assert (both == turned[:, ::-1]).mean() > 0.999  # looking at both sides, an image and its mirror image are alike
    assert both.shape == find(plain).shape == pixels.shape[:2]
    assert np.array_equal(find(plain), find(Windows(20, 1)))


def test_judge__a_segmenter_that_knows_the_truth_has_a_mean_iou_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are painted by their label maps; windows, sizes and counting may lose nothing on the way back."""
    root = write_ade20k(tmp_path / "ade", val=4)
    for file in sorted((root / "annotations" / "validation").glob("*.png")):
        labels = np.asarray(Image.open(file))
        painted = np.repeat(np.maximum(labels, 1)[:, :, None] * 60, 3, axis=2)
        Image.fromarray(painted).save((root / "images" / "validation" / file.name).with_suffix(".jpg"), format="png")
    config = segmentation_config(root, tmp_path / "run")
    model = build(config, 3).model

    def read_colours(windows: torch.Tensor) -> torch.Tensor:
        grey = (windows[:, 0] * config.preprocess.std[0] + config.preprocess.mean[0]) * 255
        return -(grey[:, None] - torch.tensor([60.0, 120.0, 180.0])[None, :, None, None]).abs()

    monkeypatch.setattr(model, "score", read_colours)
    common = (config.scenes, config.preprocess)
    for windows in (Windows(20, 3), Windows(32, 1, (1.0, 2.0), True)):
        found = judge(
            model, open_scenes(root).val, *common, windows, PRECISIONS["fp32"], number=1.0, group=ALONE, num_workers=0
        )
        assert found.overlap.mean_iou == 1.0
        assert found.overlap.pixel_accuracy == 1.0
        assert all(read > 0 for read in found.areas.sum(axis=(0, 1)))


def test_lr__is_a_polynomial_after_a_linear_warm_up() -> None:
    config = SegmentationOptimConfig()
    assert config.lr_at(0, 1263) == pytest.approx(8e-5 * 1e-6)
    assert config.lr_at(750, 1263) == pytest.approx(8e-5 * (1 - 750 / 160000) * (1 - 0.5 * (1 - 1e-6)))
    assert config.lr_at(1500, 1263) == pytest.approx(8e-5 * (1 - 1500 / 160000))
    assert config.lr_at(80000, 1263) == pytest.approx(4e-5)
    assert config.lr_at(159999, 1263) == pytest.approx(8e-5 / 160000)
    assert SegmentationOptimConfig(steps=1).lr_at(0, 10) > 0


def test_groups__of_the_official_rule_decay_the_cls_token_and_leave_heads_at_full_rate(
    ade: Path, tmp_path: Path
) -> None:
    for rule, decays in (("official", True), ("clean", False)):
        parts = build(segmentation_config(ade, tmp_path, optim={"steps": 1, "batch_size": 4, "layer_rule": rule}), 3)
        found = {}
        for group in parts.state.optimizer.param_groups:
            for value in group["params"]:
                found[id(value)] = (group["lr_scale"], group["weight_decay"] > 0)
        model = parts.model
        assert found[id(model.backbone.cls_token)] == (pytest.approx(0.9**5), decays)
        assert found[id(model.backbone.blocks[3].attn.relative_position_bias_table)] == (pytest.approx(0.9), decays)
        assert found[id(model.decode_head.conv_seg.weight)] == (1.0, True)
        assert found[id(model.pyramid.fpn1[1].weight)] == (1.0, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"steps": 1000}}, "optim.warmup_steps=1500 must be less than optim.steps=1000; set both"),
        ({"eval": {"scales": [0.5, 0.0]}}, "eval.scales"),
        ({"data": {"channels": 4, "source": "x"}}, "segmentation is for images of colours; data.channels is 4"),
        ({"data": {"source": ["a", "b"]}}, "data.source is one folder"),
        ({"compute": {"shard": "fsdp"}}, "compute.shard=fsdp is for pretraining and finetuning"),
        ({"scenes": {"scale": [2.0, 1.0]}}, "scenes.scale must be ordered"),
        ({"preprocess": 32}, "preprocess: input should be a valid dictionary"),
        (
            {"preprocess": {"mean": [0.5] * 2, "std": [0.5] * 2}},
            "preprocess.mean and preprocess.std have 2 numbers each",
        ),
        ({"scenes": {"long_side": 10, "short_side": 20}}, "scenes.short_side=20 is more than scenes.long_side=10"),
        *(
            (
                {"preprocess": {"image_size": 32, **unread}},
                f"preprocess: a segmentation run reads image_size, mean, std only; leave out {', '.join(unread)}",
            )
            for unread in (
                {"crop_fraction": 0.875},
                {"interpolation": "bilinear"},
                {"jpeg_draft": True},
                {"resize": "squash", "crop_fraction": 1.0},
            )
        ),
    ],
    ids=str,
)
def test_config__refuses_what_cannot_work(ade: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        segmentation_config(ade, tmp_path, **changes)


def test_config__of_a_run_has_what_its_weights_have_of_preprocess(ade: Path, tmp_path: Path) -> None:
    options = {"imagenet_default_mean_and_std": False, "input_size": 384}
    file = save(pretrain_checkpoint(official_state("pretrain", Shape(depth=4)), **options), tmp_path / "pt.pth")
    changes = {"init": str(file), "model": {}, "optim": {"steps": 1, "batch_size": 4}}
    config = segmentation_config(ade, tmp_path / "run", **changes)
    segment(config)
    stored = str(tmp_path / "run" / "config.yaml")
    again = load_job(stored, ["preprocess.image_size=64"])
    assert isinstance(again, SegmentationConfig)
    assert (again.preprocess.crop_fraction, again.preprocess.mean, again.preprocess.image_size) == (1.0, (0.5,) * 3, 64)
    for set_now in ("preprocess.crop_fraction=1.0", "preprocess={interpolation: nearest}"):
        with pytest.raises(ConfigError, match=r"reads image_size, mean, std only; leave out (crop|interpolation)"):
            load_job(stored, [set_now])
    assert segment(load_job(stored), resume=True)["step"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"steps": 1, "batch_size": 4, "accumulate": 4}}, "leaves 1 images at once, of which batch norm"),
        ({"head": {"taps": [0, 1, 1, 3]}}, "must ascend from 0 or more to the last block, 3"),
        ({"head": {"taps": [0, 1, 2, 2]}}, "must ascend"),
        ({"model": {"dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4}}, "takes the outputs of 4 blocks, but"),
        ({"eval": {"stride": 33}}, "eval.stride=33 is more than a window, 32 pixels: pixels between windows have no"),
        ({"preprocess": {"image_size": 36}}, "makes 9 patches per side; the pyramid halves them"),
        ({"preprocess": {"image_size": 30}}, "must be a multiple of model.patch_size=4"),
        ({"optim": {"steps": 1, "batch_size": 9}}, "needs 9 images per step, but the source has 8"),
        ({"init": None}, "init is not set"),
        ({"data": {"num_workers": 0}}, "data.source is not set"),
    ],
    ids=str,
)
def test_segment__refuses_what_cannot_work(ade: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        segment(segmentation_config(ade, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def _of_a_group(worker: Worker, source: str, run: str, **changes: Any) -> dict[str, Any]:
    optim = {"steps": 4, "batch_size": 5, "warmup_steps": 1, "accumulate": 1}  # shares of 3 and of 2
    config = segmentation_config(Path(source), Path(run), **{"optim": optim, **OFTEN, **changes})
    return segment(config, resume=True, worker=worker)


def _stopped_in_a_group(worker: Worker, source: str, run: str) -> str:
    try:
        _of_a_group(replace(worker, stop=stopped_after(2).stop), source, run)
    except Interrupted as error:
        return str(error)
    return ""


def test_segment__of_two_workers_judges_all_scenes_once_and_resumes_to_the_bit(ade: Path, tmp_path: Path) -> None:
    one, two = run_ranks(2, _of_a_group, str(ade), str(tmp_path / "whole"))
    assert not isinstance(one, Exception), one
    assert one == two
    areas = read_kept_areas(tmp_path / "whole", "last")
    labels = [open_scenes(ade).val.labels_of(i) for i in range(3)]
    assert areas[:, 2].tolist() == [[int((map_ == c).sum()) for c in range(3)] for map_ in labels]
    stopped = run_ranks(2, _stopped_in_a_group, str(ade), str(tmp_path / "parts"))
    assert all("stopped after 2 steps" in text for text in stopped)
    run_ranks(2, _of_a_group, str(ade), str(tmp_path / "parts"))
    first, second = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    loaded = load_segmenter(tmp_path / "whole")  # the model that is kept is the one that was judged
    config = segmentation_config(ade, tmp_path / "whole")
    again = judge(
        loaded.model,
        open_scenes(ade).val,
        config.scenes,
        config.preprocess,
        config.windows,
        PRECISIONS["fp32"],
        number=0.0,
        group=ALONE,
        num_workers=0,
    )
    assert again.areas.tolist() == areas.tolist()


def test_preset__costs_what_the_published_model_costs() -> None:
    lines = "\n".join(cost_lines(load_job("ade20k-upernet-base")))
    assert "backbone 86.23 M, pyramid 7.08 M, UperNet head 67.96 M, auxiliary head 1.81 M" in lines
    assert "steps: 160,000 of 16 images; 1,263 per epoch (data.source is not set; with the images of ADE20K" in lines


def test_step_memory__is_what_the_graph_keeps_of_each_image(ade: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        found = step_memory(make_segmenter(segmentation_config(ade, tmp_path), 3), 32)
        wide = step_memory(make_segmenter(segmentation_config(ade, tmp_path, preprocess={"image_size": 64}), 3), 64)
    kept = {}
    model = make_segmenter(segmentation_config(ade, tmp_path), 3).train()
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = model(torch.randn(4, 3, 32, 32), torch.rand(4, model.num_dice))
        model.loss(scores, torch.zeros(4, 32, 32, dtype=torch.int64))
    real = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own) / 4
    assert 0.6 * real < found.per_image < 1.2 * real  # on a CPU attention may keep other things
    assert wide.per_image > 3.5 * found.per_image
    parameters = sum(value.numel() for value in model.parameters())
    assert found.total(2) == 16 * parameters + 2 * found.per_image
