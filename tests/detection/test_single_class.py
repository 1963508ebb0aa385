"""Detectors of a single class: they learn, are scored by both backends, and are read again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from official import save
from official_detectors import checkpoint_of, official_state_of, small_detector
from shape_scenes import SINGLE, detection_config, write_shapes_coco

from mcbeit.detection import detector_table
from mcbeit.detection.coco import open_coco_splits
from mcbeit.detection.coco_scores import Backend
from mcbeit.detection.loading import load_detector
from mcbeit.detection.training import detect


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_coco(tmp_path_factory.mktemp("scenes") / "coco", categories=SINGLE)


def test_open_coco_splits__of_a_single_class(coco: Path) -> None:
    splits = open_coco_splits(coco)
    assert splits.train.classes == splits.val.classes == ["shape"]
    assert splits.train.category_ids.tolist() == [1]
    assert splits.train.annotations(0).labels.tolist() == [0, 0]


@pytest.mark.parametrize("backend", ["fast", "pycocotools"])
def test_detect__of_a_single_class(
    coco: Path, tmp_path: Path, backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"optim": {"steps": 1, "batch_size": 2}, "eval": {"backend": backend}}
    summary = detect(detection_config(coco, tmp_path, **changes))
    assert np.isfinite(summary["loss"])
    told = json.loads((tmp_path / "scores.json").read_text())
    for kind in ("box", "mask"):
        assert told[kind]["by_class"] == {"shape": pytest.approx(summary[f"{kind}_ap"])}
    assert {entry["category_id"] for entry in json.loads((tmp_path / "results.json").read_text())} <= {1}
    assert "8 images of 1 class with 16 objects" in capsys.readouterr().err
    loaded = load_detector(tmp_path)
    assert loaded.shape.num_classes == 1
    assert "1 class; fpn pyramid" in dict(detector_table.facts(loaded))["heads"]


def test_load_detector__of_the_official_layout_with_a_single_class(tmp_path: Path) -> None:
    detector = small_detector(num_classes=1)
    loaded = load_detector(save(checkpoint_of(official_state_of(detector)), tmp_path / "model_final.pth"))
    assert loaded.shape.num_classes == 1
    images = torch.randint(256, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    (found,), (wanted,) = loaded.model.detect(images), detector.detect(images)
    assert len(wanted.scores) > 0
    assert torch.equal(found.scores, wanted.scores)
    assert set(found.labels.tolist()) == {0}
