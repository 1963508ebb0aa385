"""The detection job on tiny runs: it learns, judges, resumes to the bit, and refuses what cannot work."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official import Shape, official_state, pretrain_checkpoint, save
from ranks import run_ranks
from shape_scenes import detection_config, write_shapes_coco
from tiny import stopped_after
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.checkpoint import load_checkpoint
from mcbeit.config import load
from mcbeit.detection.coco import open_coco_splits
from mcbeit.detection.coco_scores import score
from mcbeit.detection.judging import judge
from mcbeit.detection.loading import load_detector
from mcbeit.detection.setup import DetectionConfig, DetectionOptimConfig, build, check_job, make_detector
from mcbeit.detection.training import Annotated, detect
from mcbeit.device import choose_precision
from mcbeit.errors import ConfigError, DataError, Interrupted, RunError
from mcbeit.group import ALONE, Group
from mcbeit.jobs import cost_lines, load_job
from mcbeit.start import with_weights
from mcbeit.supervised import as_trained
from mcbeit.worker import Worker

OFTEN: dict[str, Any] = {"log": {"every_steps": 1, "tensorboard": False}, "checkpoint": {"every_epochs": 0.5}}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_coco(tmp_path_factory.mktemp("scenes") / "coco")


def records(run: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "model_flops", "share_of_peak"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors["model"]


def test_detect__learns_and_leaves_results_that_others_can_read(coco: Path, tmp_path: Path) -> None:
    optim = {"steps": 150, "batch_size": 4, "lr": 3e-3, "weight_decay": 0.0}
    summary = detect(detection_config(coco, tmp_path, optim=optim, eval={"every_epochs": 1e9, "backend": "fast"}))
    losses = [record["loss"] for record in records(tmp_path) if "loss" in record]
    assert losses[-1] < 0.6 * losses[0]
    assert summary["box_ap"] > 0.1
    assert summary["mask_ap"] > 0.1
    entries = json.loads((tmp_path / "results.json").read_text())
    assert set(entries[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert {entry["category_id"] for entry in entries} <= {4, 77}
    again = score(str(coco / "annotations" / "instances_val2017.json"), entries)  # by pycocotools
    assert again["bbox"].stats["AP"] == pytest.approx(summary["box_ap"], abs=1e-6)
    assert again["segm"].stats["AP"] == pytest.approx(summary["mask_ap"], abs=1e-6)
    told = json.loads((tmp_path / "scores.json").read_text())
    assert set(told["mask"]["by_class"]) == {"disc", "square"}
    assert {"objectness_loss", "proposal_box_loss", "mask_loss"} <= {
        name.removeprefix("loss_") for record in records(tmp_path) for name in record
    }


def test_detect__resumes_as_if_never_stopped(coco: Path, tmp_path: Path) -> None:
    detect(detection_config(coco, tmp_path / "whole", **OFTEN))
    config = detection_config(coco, tmp_path / "parts", **OFTEN)
    with pytest.raises(Interrupted, match="stopped after 2 steps"):
        detect(config, worker=stopped_after(2))
    detect(config, resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    one, two = final(tmp_path / "whole"), final(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = load(DetectionConfig, tmp_path / "whole" / "config.yaml", [])
    assert again == detection_config(coco, tmp_path / "whole", **OFTEN)
    with pytest.raises(RunError, match="exists already"):
        detect(again)
    model = as_trained(make_detector(again, 2), tmp_path / "whole")
    assert all(torch.equal(value, one[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"steps": 1, "batch_size": 6, "accumulate": 3, "clip_grad": 1.0}},
        {"optim": {"steps": 1, "batch_size": 1}},
        {"optim": {"steps": None, "epochs": 0.5, "batch_size": 4, "layer_decay": 0.7}},
        {"detector": {"pyramid": "simple", "channels": 16, "head_dim": 32}, "window": 3},
        {"compute": {"gradient_checkpointing": True, "precision": "bf16"}},
        {"eval": {"batch_size": 2, "backend": "pycocotools"}},
    ],
    ids=str,
)
def test_detect__takes_a_step_with_every_option(coco: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    summary = detect(detection_config(coco, tmp_path, **{"optim": {"steps": 1, "batch_size": 2}, **changes}))
    assert np.isfinite(summary["loss"])
    assert 0 <= summary["box_ap"] <= 1


@pytest.mark.parametrize("tables", [None, "per-block"])
def test_detect__starts_from_pretrained_weights(coco: Path, tmp_path: Path, tables: str | None) -> None:
    state = official_state("pretrain", Shape(depth=8, patch=8))
    file = save(pretrain_checkpoint(state), tmp_path / "pt.pth")
    model = {} if tables is None else {"bias_tables": tables}
    colours = {"image_size": 64, "mean": [0.4, 0.5, 0.6]}
    config = with_weights(detection_config(coco, tmp_path / "run", init=str(file), model=model, preprocess=colours))
    assert config.model.bias_tables == (tables or "shared")
    built = build(config, 2).model.backbone
    assert (built.windowed_rel_pos_bias is None) == (tables == "per-block")
    assert torch.equal(built.blocks[2].mlp.fc1.weight.detach(), state["blocks.2.mlp.fc1.weight"])
    summary = detect(config)
    assert summary["init"][0].startswith(f"starts from {file} (SHA-256 ")
    assert "resized" in summary["init"][0]
    assert "ignored" in summary["init"][0]
    assert summary["init"][1:] == ["preprocess.mean is [0.4, 0.5, 0.6], the weights come from [0.485, 0.456, 0.406]"]


def test_detect__unreadable_test_images_are_told_and_count_as_empty(tmp_path: Path) -> None:
    root = write_shapes_coco(tmp_path / "coco", val=3)
    (root / "val2017" / f"{2:012d}.jpg").write_bytes(b"no image")
    detect(detection_config(root, tmp_path / "run", optim={"steps": 1, "batch_size": 2}))
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["unreadable"] == [1]
    for path in (root / "val2017").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 3 test images, such as"):
        detect(detection_config(root, tmp_path / "other", optim={"steps": 1, "batch_size": 2}))


def test_lr__is_a_cosine_with_a_straight_start() -> None:
    config = DetectionOptimConfig()
    assert config.lr_at(0, 1832) == pytest.approx(8e-8)
    end = 8e-5 * 0.5 * (1 + math.cos(math.pi * 0.01))
    assert config.lr_at(230, 1832) == pytest.approx(8e-8 + (end - 8e-8) * 230 / 460.93, rel=1e-6)
    assert config.lr_at(461, 1832) == pytest.approx(8e-5 * 0.5 * (1 + math.cos(math.pi * 461 / 46093)))
    assert config.lr_at(46092, 1832) < 1e-12
    assert DetectionOptimConfig(steps=1).lr_at(0, 10) > 0


def test_groups__spare_norms_positions_and_tables_only(coco: Path, tmp_path: Path) -> None:
    optim = {"steps": 1, "batch_size": 2, "layer_decay": 0.5}
    parts = build(detection_config(coco, tmp_path, optim=optim), 2)
    decays = {
        id(value): (group["weight_decay"] > 0, group["lr_scale"])
        for group in parts.state.optimizer.param_groups
        for value in group["params"]
    }
    model = parts.model
    assert len(decays) == len(list(model.parameters()))
    block = model.backbone.blocks[0]
    assert decays[id(block.norm1.weight)] == decays[id(block.norm1.bias)] == (False, 0.5**8)
    assert decays[id(block.gamma_1)] == decays[id(block.attn.proj.bias)] == (True, 0.5**8)
    assert decays[id(model.backbone.pos_embed)] == (False, 0.5**9)
    assert decays[id(model.backbone.global_rel_pos_bias.relative_position_bias_table)] == (False, 1.0)
    assert decays[id(model.pyramid.fpn.inner_blocks[0][1].weight)] == (False, 1.0)  # a batch norm
    assert decays[id(model.roi_heads.box_predictor.cls_score.bias)] == (True, 1.0)


def test_annotated__is_split_with_its_targets() -> None:
    targets = [{"labels": torch.tensor([i])} for i in range(5)]
    whole = Annotated(torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 2, 2).to(torch.uint8), targets, torch.zeros(5, 1))
    parts = whole.split(2)
    assert [part.num_rows for part in parts] == [3, 2]
    for part in parts:
        assert [int(t["labels"][0]) for t in part.targets] == part.images[:, 0, 0, 0].tolist()
    assert len(whole.split(7)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"dim": 32, "depth": 6, "num_heads": 2}}, "model.depth must be a multiple of 4, found 6"),
        ({"data": {"channels": 4, "source": "x"}}, "detection is for images of colours; data.channels is 4"),
        ({"data": {"source": ["a", "b"]}}, "data.source is one folder"),
        ({"compute": {"shard": "fsdp"}}, "compute.shard=fsdp is for pretraining and finetuning"),
        ({"eval": {"backend": "other"}}, "backend"),
        (
            {"preprocess": {"mean": [0.5] * 4, "std": [0.5] * 4}},
            "preprocess.mean and preprocess.std have 4 numbers each",
        ),
        (
            {"preprocess": {"image_size": 64, "interpolation": "bicubic", "crop_fraction": 0.5}},
            "preprocess: a detection run reads image_size, mean, std only; leave out crop_fraction, interpolation",
        ),
    ],
    ids=str,
)
def test_config__refuses_what_cannot_work(coco: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detection_config(coco, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": {"image_size": 60}}, "must be a multiple of model.patch_size=8"),
        ({"preprocess": {"image_size": 8}}, "the coarsest map has a cell for 2 x 2 patches, but an image has 1 x 1 of"),
        ({"model": {"dim": 48, "depth": 8, "num_heads": 2, "patch_size": 8}}, "model.dim=48 is no multiple of it"),
        ({"model": {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 2}}, "patch_size=2 is no multiple of 4"),
        ({"optim": {"batch_size": 9}}, "needs 9 images per step, but the source has 8"),
        ({"optim": {"batch_size": 4, "accumulate": 3, "steps": 1}, "init": None}, "init is not set"),
        ({"data": {"num_workers": 0}}, "data.source is not set"),
        ({"data": {"num_workers": 0, "source": "nowhere"}}, "'nowhere' is not there"),
    ],
    ids=str,
)
def test_detect__refuses_what_cannot_work(coco: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        detect(detection_config(coco, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def _without_outline(content: dict[str, Any]) -> None:
    content["annotations"][0].pop("segmentation")


def _without_objects(content: dict[str, Any]) -> None:
    content["annotations"].clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_outline, r"instances_val2017.json' has 1 annotations without a segmentation, so masks cannot be"),
        (_without_objects, r"none of the 3 test images of '.*instances_val2017.json' shows an object to find"),
    ],
)
def test_detect__refuses_tests_that_cannot_be_scored(change: Any, message: str, tmp_path: Path) -> None:
    root = write_shapes_coco(tmp_path / "coco")
    place = root / "annotations" / "instances_val2017.json"
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        detect(detection_config(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_detect__refuses_a_backend_that_is_not_there(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(DataError, match="COCO's scores need faster-coco-eval: pip install"):
        detect(detection_config(coco, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def scores(entries: Iterable[dict[str, Any]]) -> list[tuple[int, float]]:
    """The images and scores of detections, sorted."""
    return sorted((entry["image_id"], entry["score"]) for entry in entries)


def _of_a_group(worker: Worker, source: str, run: str) -> dict[str, Any]:
    return detect(detection_config(Path(source), Path(run), optim={"steps": 2, "batch_size": 4}), worker=worker)


def test_detect__of_two_workers_searches_all_images_once(coco: Path, tmp_path: Path) -> None:
    one, two = run_ranks(2, _of_a_group, str(coco), str(tmp_path / "two"))
    assert not isinstance(one, Exception), one
    assert one == two
    entries = json.loads((tmp_path / "two" / "results.json").read_text())
    kept = load_detector(tmp_path / "two").model  # both judged the model that was saved, not one with their own norms
    source = open_coco_splits(coco).val
    precision = choose_precision("fp32", torch.device("cpu"))
    again = judge(kept, source, precision, number=0.0, group=ALONE, num_workers=0, batch_size=1, backend="fast")
    assert len(entries) > 0
    assert np.allclose(scores(again.results), scores(entries), atol=1e-5)
    counts = {image: sum(entry["image_id"] == image for entry in entries) for image in (1, 2, 3)}
    assert max(counts.values()) <= 100


def test_check_job__refuses_parts_that_some_workers_do_not_have(coco: Path, tmp_path: Path) -> None:
    config = detection_config(coco, tmp_path, optim={"batch_size": 8, "accumulate": 4})
    check_job(config, Group(size=2))
    with pytest.raises(ConfigError, match=r"over 3 workers leaves 2 images to some of them, which optim.accumulate=4"):
        check_job(config, Group(size=3))


def test_preset__costs_what_the_published_model_costs() -> None:
    lines = "\n".join(cost_lines(load_job("coco-maskrcnn-base")))
    assert "backbone 89.01 M, pyramid 10.23 M, proposals 1.18 M, heads 18.27 M" in lines
    assert "steps: 46,093 of 64 images; 1,832 per epoch" in lines
    conv = 2 * 9 * 256**2  # FLOPs of a cell
    proposals = sum(4**i for i in range(4, 9)) * (2 * conv + 2 * 256 * 15)
    boxes = 512 * (4 * 49 * conv + 2 * 49 * 256 * 1024 + 2 * 1024 * (2 + 8))
    masks = 128 * (4 * 196 * conv + 2 * 4 * 196 * 256**2 + 2 * 784 * 256 * 2)  # a quarter of the regions
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        model = make_detector(load_job("coco-maskrcnn-base"), 1).eval()
        model.pyramid(model.backbone(torch.zeros(1, 3, 1024, 1024)))
    wanted = 3 * (counter.get_total_flops() + proposals + boxes + masks) / 1e9
    assert f"FLOPs per image: forward and backward {wanted:.0f} G" in lines
