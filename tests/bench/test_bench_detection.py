"""The task detection: Mask R-CNN in a run that goes on, its numbers and its pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import backbone, save_backbone
from click.testing import CliRunner
from measured_scenes import model_of
from official import save
from official_detectors import official_state_of, small_detector
from shape_scenes import SINGLE, detection_config, write_shapes_coco

from mcbeit.bench.data import BenchData
from mcbeit.bench.result import read_results
from mcbeit.bench.results_page import write_report
from mcbeit.bench.tasks import detection
from mcbeit.bench.tasks.object_pictures import object_picture
from mcbeit.bench.tasks.task import Outcome
from mcbeit.cli.main import cli
from mcbeit.config import override, validate
from mcbeit.detection.coco import open_coco_splits
from mcbeit.detection.detections import Detections
from mcbeit.detection.training import detect
from mcbeit.errors import BenchError, ConfigError, WeightsError

SMALL: dict[str, Any] = {
    "recipe": "detection-demo",
    "preprocess": {"image_size": 64},
    "detector": {"channels": 16, "head_dim": 32, "region_samples": 16, "anchor_samples": 16},
    "optim": {"steps": 3, "batch_size": 2},
    "eval": {"batch_size": 2},
    "window": 4,
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_coco(tmp_path_factory.mktemp("scenes") / "coco", train=6, val=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of 4 blocks, 32 px in 8 x 8 patches."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "w.pth", backbone(depth=4))


def measure(weights: Path, coco: Path, out: Path, *, limit: int | None = None, **changes: Any) -> Outcome:
    data = BenchData("shapes", str(coco), limit=limit).taken_for("annotated")
    config = validate(detection.DetectionTaskConfig, {**SMALL, **changes})
    return detection.run(model_of(weights, out), data, config)


def test_run__tells_boxes_and_masks_of_the_last_epoch(weights: Path, coco: Path, tmp_path: Path) -> None:
    found = measure(weights, coco, tmp_path)
    assert list(found.metrics)[:2] == ["box_ap", "mask_ap"]
    assert {"box AP50", "mask AR_100", detection.BEST} <= set(found.metrics)
    assert found.metrics[detection.BEST].selection == "best on the test images"
    assert found.metrics["mask_ap"].selection == "last"
    for name in ("box_ap", "mask_ap"):
        assert found.metrics[name].interval is not None
        assert found.metrics[name].uncertainty == "bootstrap over images, 200 draws"
    assert found.curves[0].lines.keys() == {"box", "mask"}
    assert found.used["val"].num_used == 4
    assert [len(values) for values in found.per_class.values()] == [2, 2]
    assert len(found.pictures) == 4
    (run,) = (tmp_path / "runs").iterdir()
    assert isinstance(json.loads((run / "results.json").read_text()), list)
    assert measure(weights, coco, tmp_path).metrics == found.metrics  # the run is there
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_run__of_fewer_images_and_with_one_unreadable(weights: Path, tmp_path: Path) -> None:
    root = write_shapes_coco(tmp_path / "coco", train=6, val=4)
    (root / "val2017" / f"{1:012d}.jpg").write_bytes(b"no image")
    found = measure(weights, root, tmp_path / "out")
    assert found.used["val"].num_unreadable == 1
    assert found.used["val"].unreadable[0].endswith(f"{1:012d}.jpg")
    assert len(found.pictures) == 3
    fewer = measure(weights, root, tmp_path / "few", limit=2)
    assert fewer.used["train"].num_used == 2


def test_object_picture__shows_what_is_sure(coco: Path) -> None:
    source = open_coco_splits(coco).val
    marks = source.annotations(0)
    boxes = torch.tensor([[2.0, 2.0, 12.0, 12.0], [20.0, 10.0, 30.0, 20.0]])
    found = Detections(boxes, torch.tensor([0.9, 0.2]), torch.tensor([1, 0]), torch.ones(2, 28, 28))
    picture = object_picture(source, 0, found)
    there = sorted({1, *marks.labels.tolist()})
    assert [one["name"] for one in picture["classes"]] == [source.classes[c] for c in there]
    assert len({picture["image"], picture["truth"], picture["found"]}) == 3
    nothing = object_picture(source, 0, found._replace(scores=torch.zeros(2)))
    assert nothing["found"] != picture["found"]


def test_settings__of_a_recipe_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'optim.leraning_rate'"):
        validate(detection.DetectionTaskConfig, override({}, ["optim={leraning_rate: 1}"]))
    assert validate(detection.DetectionTaskConfig, {}).values("coco-maskrcnn-base")["window"] == 16
    assert validate(detection.DetectionTaskConfig, {"window": 8}).values("coco-maskrcnn-base")["window"] == 8


@pytest.mark.parametrize("tables", ["shared", "per-block"])
def test_run__takes_bias_tables_as_the_weights_have_them(tables: str, coco: Path, tmp_path: Path) -> None:
    norm = "tokens" if tables == "shared" else "pooled"
    options = {"dim": 64, "depth": 4, "patch_size": 16, "bias_tables": tables, "final_norm": norm}
    weights = save_backbone(tmp_path / "w.pth", backbone(64, **options))
    changes = {"window": 2, "optim": {"steps": 1, "batch_size": 2}, "model": {"dim": 64, "depth": 4, "num_heads": 2}}
    found = measure(weights, coco, tmp_path, recipe="auto", **changes)
    assert f"windows of 2 patches, {tables} bias tables, 64 px" in found.remarks[0]


@pytest.fixture(scope="module")
def trained(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that found something, and its summary."""
    run = tmp_path_factory.mktemp("trained") / "run"
    optim = {"steps": 60, "batch_size": 4, "lr": 3e-3, "weight_decay": 0.0}
    return run, detect(detection_config(coco, run, optim=optim, eval={"every_epochs": 1e9, "backend": "fast"}))


def test_run__only_measures_a_detector(trained: tuple[Path, dict[str, Any]], coco: Path, tmp_path: Path) -> None:
    run, summary = trained
    found = measure(run, coco, tmp_path, compute={"precision": "fp32"}, eval={"batch_size": 1})
    assert found.metrics["box_ap"].value == pytest.approx(summary["box_ap"], abs=1e-6)
    assert found.metrics["mask_ap"].value == pytest.approx(summary["mask_ap"], abs=1e-6)
    assert found.remarks[0].startswith("a trained detector, only measured: ")
    assert (found.used["train"].num_used, found.used["val"].num_used) == (0, 4)
    assert found.metrics["box_ap"].selection == "none"
    assert len(found.pictures) == 4
    assert not (tmp_path / "runs").exists()
    (kept,) = (tmp_path / "detections").iterdir()
    assert json.loads((kept / "results.json").read_text()) == json.loads((run / "results.json").read_text())


def test_run__of_a_detector_of_other_classes(coco: Path, tmp_path: Path) -> None:
    three = save({"model": official_state_of(small_detector())}, tmp_path / "three.pth")
    with pytest.raises(BenchError, match="is a detector of 3 classes, but shapes has 2; measure it on the images"):
        measure(three, coco, tmp_path)


def bench(*words: str) -> Any:
    return CliRunner().invoke(cli, ["bench", *words])


def test_bench__of_objects_end_to_end(weights: Path, coco: Path, tmp_path: Path) -> None:
    settings = [f"detection.{key}={json.dumps(value)}" for key, value in SMALL.items()]
    words = ["run", "-t", "detection", "-m", str(weights), "--data", f"shapes={coco}", "-o", str(tmp_path)]
    answer = bench(*words, "data.num_workers=0", *settings)
    assert answer.exit_code == 0, answer.output
    (result,) = read_results(tmp_path)
    assert (result.primary, result.data.classes, result.data.layout) == ("box_ap", ("disc", "square"), "coco2017")
    assert np.isfinite(result.metrics["box_ap"].value)
    page = write_report(tmp_path).page.read_text()
    assert page.count('alt="what was found"') == 4
    refused = bench("run", "-t", "detection", "-m", "fake", "--data", f"s={coco}", "-o", str(tmp_path / "other"))
    assert refused.exit_code == 2
    assert "detection: not possible with 'fake'" in refused.output


def test_bench__of_a_single_class_end_to_end(weights: Path, tmp_path: Path) -> None:
    root = write_shapes_coco(tmp_path / "coco", train=6, val=4, categories=SINGLE)
    settings = [f"detection.{key}={json.dumps(value)}" for key, value in SMALL.items()]
    words = ["--data", f"shapes={root}", "data.num_workers=0", *settings]
    answer = bench("run", "-t", "detection", "-m", str(weights), "-o", str(tmp_path / "trained"), *words)
    assert answer.exit_code == 0, answer.output
    (run,) = (tmp_path / "trained" / "runs").iterdir()
    answer = bench("run", "-t", "detection", "-m", str(run), "-o", str(tmp_path / "measured"), *words)
    assert answer.exit_code == 0, answer.output
    for out in (tmp_path / "trained", tmp_path / "measured"):
        (result,) = read_results(out)
        assert result.data.classes == ("shape",)
        assert result.per_class == {
            kind: pytest.approx((result.metrics[kind].value,)) for kind in ("box_ap", "mask_ap")
        }
        page = write_report(out).page.read_text()
        assert page.count('alt="what was found"') == 4
        assert '<ul class="classes">' not in page  # its only row would be the number above
    assert "of 1 class<" in page


def test_bench__of_a_detector_end_to_end(trained: tuple[Path, dict[str, Any]], coco: Path, tmp_path: Path) -> None:
    words = ["-m", str(trained[0]), "--data", f"shapes={coco}", "-o", str(tmp_path), "data.num_workers=0"]
    answer = bench("run", "-t", "detection", *words, "detection.eval={backend: fast}")
    assert answer.exit_code == 0, answer.output
    (result,) = read_results(tmp_path)
    assert (result.model.spec.name, result.model.spec.dim) == ("run", 32)
    assert result.metrics["box_ap"].value == pytest.approx(trained[1]["box_ap"], abs=0.05)  # in bf16
    assert "objects" in write_report(tmp_path).page.read_text()
    assert bench("verify", str(tmp_path)).exit_code == 0
    again = bench("run", "-t", "detection", *words, "detection.eval={backend: fast}", "--resume")
    assert again.exit_code == 0, again.output
    with pytest.raises(WeightsError, match="is a detector, whose backbone no other job can take"):
        _ = model_of(trained[0], tmp_path).encoder  # which other tasks ask for
