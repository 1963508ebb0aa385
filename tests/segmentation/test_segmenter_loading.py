"""Segmenters from files: runs of ours and the layout of the official code, every key accounted for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measured_scenes import model_of
from official import official_state, save
from official_segmenters import SHAPE, checkpoint, official_segmenter
from scenes import segmentation_config, write_ade20k

from mcbeit.bench.data import BenchData
from mcbeit.bench.tasks import segmentation
from mcbeit.checkpoint import CheckpointFolder
from mcbeit.config import validate
from mcbeit.encoder import load_encoder
from mcbeit.errors import BenchError, WeightsError
from mcbeit.segmentation.loading import holds_segmenter, load_segmenter
from mcbeit.segmentation.training import segment
from mcbeit.weights import read_weights


def test_load_segmenter__of_the_official_layout_accounts_for_every_key(tmp_path: Path) -> None:
    state = official_segmenter()
    file = save(checkpoint(state), tmp_path / "upernet.pth")
    assert holds_segmenter(file)
    loaded = load_segmenter(file)
    assert (loaded.image_size, loaded.model.num_classes, loaded.model.taps) == (32, 3, (0, 1, 2, 3))
    counts = loaded.account.counts()
    indices = [name for name in state if name.endswith("relative_position_index")]
    assert counts == {"loaded": len(state) - len(indices), "converted": 0, "resized": 0, "ignored": len(indices) + 1}
    assert loaded.account.entries["meta"].rule == "no weights, beside them"
    ours = loaded.model.state_dict()
    assert torch.equal(ours["pyramid.fpn1.0.weight"], state["backbone.fpn1.0.weight"])
    assert torch.equal(ours["backbone.blocks.3.gamma_2"], state["backbone.blocks.3.gamma_2"])
    assert torch.equal(ours["decode_head.conv_seg.weight"], state["decode_head.conv_seg.weight"])
    assert loaded.model.score(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_load_segmenter__of_a_run_is_what_was_trained(tmp_path: Path) -> None:
    ade = write_ade20k(tmp_path / "ade")
    segment(segmentation_config(ade, tmp_path / "run", head={"channels": 16, "auxiliary_channels": 8}))
    loaded = load_segmenter(tmp_path / "run")
    assert loaded.preprocess is not None
    assert loaded.image_size == 32
    images = torch.randn(2, 3, 32, 32)
    stored = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert stored is not None
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, stored.tensors["model"][name]), name
    assert loaded.model.score(images).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("decode_head.bottleneck.conv.weight"), "lacks decode_head.bottleneck.conv.weight"),
        (lambda state: state.update({"decode_head.extra.weight": torch.zeros(2)}), "has too much: decode_head.extra"),
        (lambda state: state.update({"backbone.fpn2.0.bias": torch.zeros(5)}), r"pyramid.fpn2.0.bias is \[5\], not"),
        (lambda state: state["decode_head.conv_seg.bias"].fill_(torch.nan), "not finite .* decode_head.conv_seg.bias"),
        (lambda state: state.pop("auxiliary_head.conv_seg.weight"), "lacks the auxiliary head"),
        (lambda state: state.pop("backbone.blocks.1.attn.proj.weight"), "blocks.1.attn.proj.weight"),
    ],
    ids=["missing", "surplus", "size", "nan", "no auxiliary head", "backbone"],
)
def test_load_segmenter__names_what_does_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    state = official_segmenter()
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_segmenter(save(checkpoint(state), tmp_path / "upernet.pth"))


def test_load_segmenter__refuses_a_backbone(tmp_path: Path) -> None:
    file = save({"model": official_state("finetune", SHAPE)}, tmp_path / "backbone.pth")
    assert not holds_segmenter(file)
    with pytest.raises(WeightsError, match=r"is no segmenter: it has no 'decode_head.conv_seg.weight'"):
        load_segmenter(file)


def test_read_weights__of_a_segmenter_is_its_backbone(tmp_path: Path) -> None:
    file = save(checkpoint(official_segmenter()), tmp_path / "upernet.pth")
    weights = read_weights(file)
    assert weights.model.shape == (32, 4, 2)
    assert any("part of a segmenter" in entry.rule for entry in weights.account.entries.values())
    vectors = load_encoder(file).embed([np.zeros((40, 40, 3), np.uint8)])
    assert vectors.shape == (1, 32)
    assert np.isfinite(vectors).all()


def test_bench__only_measures_a_segmenter_on_images_of_its_own_size(tmp_path: Path) -> None:
    ade = write_ade20k(tmp_path / "ade")
    optim = {"steps": 60, "batch_size": 4, "warmup_steps": 5, "lr": 3e-3}
    summary = segment(segmentation_config(ade, tmp_path / "run", optim=optim, eval={"every_epochs": 1000}))
    data = BenchData("scenes", str(ade)).taken_for("scenes")

    def measure(source: Path, **chosen: Any) -> Any:
        config = validate(segmentation.SegmentationTaskConfig, {"compute": {"precision": "fp32"}, **chosen})
        return segmentation.run(model_of(source, tmp_path), data, config)

    found = measure(tmp_path / "run")
    assert found.metrics["miou"].value == pytest.approx(summary["mean_iou"], abs=1e-9)
    assert found.remarks[0].startswith("a trained segmenter, only measured: ")
    assert found.remarks[1] == "images of short side 40, long side at most 160; windows of 32, stride 21, single scale"
    other = measure(tmp_path / "run", scenes={"short_side": 64, "long_side": 256}, eval={"flip": True})
    assert other.remarks[1].startswith("images of short side 64, long side at most 256; windows of 32")
    assert other.metrics["miou"].value != found.metrics["miou"].value
    assert not (tmp_path / "runs").exists()
    official = measure(save(checkpoint(official_segmenter()), tmp_path / "three.pth"))
    assert official.remarks[1].startswith("images of short side 32, long side at most 128; windows of 32")
    with pytest.raises(BenchError, match="is a segmenter of 5 classes, but scenes has 3"):
        measure(save(checkpoint(official_segmenter(5)), tmp_path / "five.pth"))
