"""Detection that goes on from a trained detector: what is taken, what starts anew and why, and what is refused."""

from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
from going_on import line_of, other, tensors_of
from official import save
from official_detectors import checkpoint_of, official_state_of, small_detector
from scenes import segmentation_config, write_ade20k
from shape_scenes import SINGLE, detection_config, write_shapes_coco
from tiny import stopped_after

from mcbeit.config import validate
from mcbeit.detection.setup import DetectionConfig, build
from mcbeit.detection.training import detect
from mcbeit.detection.window_weights import refit_windowed
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.errors import ConfigError, Interrupted, WeightsError
from mcbeit.relative_position import resize_table
from mcbeit.segmentation.training import segment
from mcbeit.start import with_weights
from mcbeit.trained_outputs import CLASSES
from mcbeit.vit import ModelConfig, resize_positions

NAMES = ("disc", "square")
OPEN: dict[str, Any] = {"model": {}, "preprocess": {}, "window": 4, "detector": {"region_samples": 32}}
SHORT: dict[str, Any] = {"optim": {"steps": 2, "batch_size": 2, "lr": 1e-3}}
LAST = (
    *(f"roi_heads.box_predictor.{layer}.{kind}" for layer in ("bbox_pred", "cls_score") for kind in ("bias", "weight")),
    *(f"roi_heads.mask_predictor.mask_fcn_logits.{kind}" for kind in ("bias", "weight")),
)
LAYERS = (
    "roi_heads.box_predictor.bbox_pred, roi_heads.box_predictor.cls_score, roi_heads.mask_predictor.mask_fcn_logits"
)
TABLE = "relative_position_bias_table"


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_coco(tmp_path_factory.mktemp("scenes") / "coco")


@pytest.fixture(scope="module")
def trained(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose heads are none of the defaults."""
    run = tmp_path_factory.mktemp("trained") / "run"
    detector = {**detection_config(coco, run).detector.model_dump(), "anchor_scale": 4.0}
    colours = {"image_size": 64, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}
    detect(detection_config(coco, run, detector=detector, preprocess=colours, **SHORT))
    return run


def test_with_weights__takes_windows_heads_and_colours_from_a_detector(
    coco: Path, trained: Path, tmp_path: Path
) -> None:
    values = detection_config(coco, tmp_path, init=str(trained), **OPEN).model_dump(exclude_unset=True)
    del values["window"]
    config = with_weights(validate(DetectionConfig, values))
    found = config.detector
    assert (config.window, found.channels, found.head_dim, found.anchor_scale, found.pyramid) == (4, 32, 64, 4.0, "fpn")
    assert (found.region_samples, found.anchor_samples) == (32, 256)  # of training: not taken
    assert (config.model.shape, config.model.patch_size, config.model.bias_tables) == ((32, 8, 2), 8, "shared")
    assert (config.preprocess.image_size, config.preprocess.std) == (64, (0.2, 0.3, 0.2))
    assert with_weights(config) is config


def test_build__of_the_same_classes_takes_everything(coco: Path, trained: Path, tmp_path: Path) -> None:
    config = with_weights(detection_config(coco, tmp_path, init=str(trained), **OPEN))
    parts = build(config, 2, classes=NAMES)
    state = parts.model.state_dict()
    assert other(state, tensors_of(trained)) == []
    assert int(state["roi_heads.box_head.0.1.num_batches_tracked"]) == 2
    assert len(parts.state.numbers["init"]) == 1
    assert line_of(parts).endswith(
        f"{len(state)} keys: {len(state)} loaded; the scores, boxes and masks of the classes ({LAYERS}) go "
        "on: both have the same 2 classes, by name"
    )


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        (("shape",), "the weights have 2 classes, the images 1"),
        (
            ("disc", "cube"),
            "both have 2 classes, but 1 of other names, such as 'square' in the weights and 'cube' in the images",
        ),
    ],
    ids=["number", "names"],
)
def test_build__of_other_classes_starts_the_last_layers_anew(
    coco: Path, trained: Path, tmp_path: Path, classes: tuple[str, ...], why: str
) -> None:
    config = with_weights(detection_config(coco, tmp_path, init=str(trained), **OPEN))
    parts, before = build(config, len(classes), classes=classes), tensors_of(trained)
    state = parts.model.state_dict()
    drawn = build(config.model_copy(update={"init": "random"}), len(classes)).model.state_dict()
    for name, value in state.items():
        assert torch.equal(value, drawn[name] if name in LAST else before[name]), name
    assert bool(before["pyramid.fpn.inner_blocks.0.1.running_mean"].any())
    assert line_of(parts).endswith(
        f"{len(state) - 6} loaded, 6 ignored; the scores, boxes and masks of the classes ({LAYERS}) start anew: {why}"
    )


def test_build__of_a_file_goes_on_with_as_many_classes_and_says_so(coco: Path, trained: Path, tmp_path: Path) -> None:
    (stored,) = (trained / "checkpoints").glob("step-*/model.safetensors")
    file = copyfile(stored, tmp_path / "detector.safetensors")
    config = with_weights(detection_config(coco, tmp_path / "run", init=str(file), **OPEN))
    assert config.detector.anchor_scale == 8.0  # which no tensor tells
    parts = build(config, 2, classes=("cat", "dog"))
    assert other(parts.model.state_dict(), tensors_of(trained)) == []
    assert line_of(parts).endswith("both have 2 classes, of names that are not known: right for the same ones only")
    assert parts.state.numbers["init"][1:] == [
        "no file tells the anchors of its detector: detector.anchor_scale is 8.0"
    ]


@pytest.mark.parametrize("pixels", [True, False])
def test_build__of_the_official_layout_takes_pyramid_and_heads(coco: Path, tmp_path: Path, pixels: bool) -> None:
    model = small_detector()
    file = save(checkpoint_of(official_state_of(model, pixels=pixels)), tmp_path / "model_final.pth")
    config = with_weights(detection_config(coco, tmp_path / "run", init=str(file), **OPEN))
    assert (config.detector.channels, config.detector.head_dim, config.window) == (16, 24, 4)
    assert (config.model.position, config.preprocess.image_size) == ("relative+learned", 128)
    parts, before = build(config, 2, classes=NAMES), model.state_dict()
    for name, value in parts.model.state_dict().items():
        assert name in LAST or torch.equal(value, before[name]), name
    assert line_of(parts).endswith("start anew: the weights have 3 classes, the images 2")
    plain = detection_config(coco, tmp_path / "run", init=str(file), **{**OPEN, "model": {"position": "relative"}})
    assert with_weights(plain).model.position == "relative"  # the same detector: all have absolute positions


def test_build__of_the_official_layout_keeps_classes_in_our_order(coco: Path, tmp_path: Path) -> None:
    model = small_detector()
    file = save(checkpoint_of(official_state_of(model)), tmp_path / "model_final.pth")
    parts = build(with_weights(detection_config(coco, tmp_path / "run", init=str(file), **OPEN)), 3)
    ours, theirs = parts.model.roi_heads.box_predictor, model.roi_heads.box_predictor
    assert torch.equal(ours.cls_score.weight, theirs.cls_score.weight)
    assert torch.equal(ours.bbox_pred.weight[4:], theirs.bbox_pred.weight[4:])


def test_build__at_another_size_with_a_table_per_block(coco: Path, trained: Path, tmp_path: Path) -> None:
    changes = {**OPEN, "preprocess": {"image_size": 96}, "model": {"bias_tables": "per-block"}}
    config = with_weights(detection_config(coco, tmp_path, init=str(trained), **changes))
    parts, before = build(config, 2, classes=NAMES), tensors_of(trained)
    state = parts.model.state_dict()
    windowed, whole = (before[f"backbone.{kind}_rel_pos_bias.{TABLE}"] for kind in ("windowed", "global"))
    assert torch.equal(state[f"backbone.blocks.0.attn.{TABLE}"], windowed)
    resized = resize_table(torch.cat([whole, torch.zeros(3, 2)]), (8, 8), (12, 12))[:-3]
    assert torch.equal(state[f"backbone.blocks.1.attn.{TABLE}"], resized)
    with_cls = torch.cat([torch.zeros(1, 1, 32), before["backbone.pos_embed"]], dim=1)
    assert torch.equal(state["backbone.pos_embed"], resize_positions(with_cls, (8, 8), (12, 12))[:, 1:])
    assert f"{len(before) - 3} loaded, 1 converted, 2 resized;" in line_of(parts)


def _backbone(side: int, window: int = 4, **options: Any) -> WindowedBackbone:
    model = WindowedBackbone(ModelConfig(dim=32, depth=8, num_heads=2, patch_size=8, **options), image_size=8 * side,
                             window=window)  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(TABLE) or name == "pos_embed":
                value.normal_()
    return model


def test_refit_windowed__changes_what_has_another_size_alone() -> None:
    assert refit_windowed(_backbone(8), _backbone(8)) == {}
    found = refit_windowed(_backbone(8), _backbone(12))
    assert {name: part.rule for name, part in found.items()} == {
        "pos_embed": "positions, for 12 x 12 patches",
        f"global_rel_pos_bias.{TABLE}": "shared table, for 12 x 12 patches, bicubic",
    }
    per_block = {"bias_tables": "per-block"}
    own = refit_windowed(_backbone(8, **per_block), _backbone(8, window=2, **per_block))
    assert set(own) == {f"blocks.{i}.attn.{TABLE}" for i in (0, 2, 4, 6)}
    assert {part.value.shape for part in own.values()} == {(9, 2)}


def test_refit_windowed__keeps_what_is_seen_of_a_level_table() -> None:
    trained = _backbone(8)
    with torch.no_grad():
        trained.global_rel_pos_bias.relative_position_bias_table.fill_(0.5)
    found = refit_windowed(trained, _backbone(12))[f"global_rel_pos_bias.{TABLE}"]
    torch.testing.assert_close(found.value, torch.full((23 * 23, 2), 0.5))


def test_detect__on_a_smaller_image_than_the_windows(coco: Path, trained: Path, tmp_path: Path) -> None:
    changes = {**OPEN, "preprocess": {"image_size": 24}, "window": 16}
    config = with_weights(detection_config(coco, tmp_path, init=str(trained), **changes))
    backbone = build(config, 2, classes=NAMES).model.backbone
    assert backbone.window == (3, 3)
    assert backbone.windowed_rel_pos_bias.relative_position_bias_table.shape == (25, 2)


def test_detect__names_every_key_that_is_not_that_of_the_detector(coco: Path, trained: Path, tmp_path: Path) -> None:
    detector = {"pyramid": "simple", "channels": 16, "head_dim": 32, "anchor_scale": 8.0}
    model = {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 16}
    config = detection_config(coco, tmp_path / "run", init=str(trained), model=model, detector=detector, window=2)
    with pytest.raises(ConfigError) as caught:
        detect(config)
    with pytest.raises(ConfigError) as told_before:
        with_weights(config)
    assert str(told_before.value) == str(caught.value)
    (file,) = (trained / "checkpoints").glob("step-*/model.safetensors")
    assert str(caught.value).splitlines() == [
        f"the model of the config is not that of init={file}:",
        "  model.patch_size: 16 in the config, 8 in the weights",
        "  window: 2 in the config, 4 in the weights",
        "  detector.pyramid: simple in the config, fpn in the weights",
        "  detector.channels: 16 in the config, 32 in the weights",
        "  detector.head_dim: 32 in the config, 64 in the weights",
        "  detector.anchor_scale: 8.0 in the config, 4.0 in the weights",
        "set these keys to what the weights have, or leave them out to have them taken from the weights",
    ]
    assert not (tmp_path / "run").exists()


def test_detect__refuses_tables_of_all_blocks_where_each_has_its_own(coco: Path, tmp_path: Path) -> None:
    file = save({"model": official_state_of(small_detector(bias_tables="per-block"))}, tmp_path / "d.pth")
    changes = {**OPEN, "model": {"bias_tables": "shared"}}
    with pytest.raises(ConfigError, match=r"model\.bias_tables: shared in the config, per-block in the weights"):
        detect(detection_config(coco, tmp_path / "run", init=str(file), **changes))
    config = with_weights(detection_config(coco, tmp_path / "run", init=str(file), **OPEN))
    assert config.model.bias_tables == "per-block"


def test_detect__refuses_a_damaged_detector_before_any_work(coco: Path, tmp_path: Path) -> None:
    state = official_state_of(small_detector())
    del state["backbone.fpn_lateral3.norm.running_var"]
    file = save({"model": state}, tmp_path / "d.pth")
    with pytest.raises(WeightsError, match=r"lacks backbone\.fpn_lateral3\.norm\.running_var"):
        detect(detection_config(coco, tmp_path / "run", init=str(file), **OPEN))
    assert not (tmp_path / "run").exists()


def test_detect__on_other_classes_resumes_as_if_never_stopped(trained: Path, tmp_path: Path) -> None:
    mine = write_shapes_coco(tmp_path / "mine", categories=SINGLE)
    changes: dict[str, Any] = {**OPEN, "log": {"every_steps": 1, "tensorboard": False}, "init": str(trained)}
    changes |= {"optim": {"steps": 3, "batch_size": 4, "lr": 1e-3}, "checkpoint": {"every_epochs": 0.5}}
    whole = detect(detection_config(mine, tmp_path / "whole", **changes))
    config = detection_config(mine, tmp_path / "parts", **changes)
    with pytest.raises(Interrupted, match="stopped after 2 steps"):
        detect(config, worker=stopped_after(2))
    parts = detect(config, resume=True)
    assert other(tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole")) == []
    assert parts["init"] == whole["init"]
    assert whole["init"][0].endswith("start anew: the weights have 2 classes, the images 1")
    assert (tmp_path / "whole" / CLASSES).read_text().split() == ["{", '"classes":', "[", '"shape"', "]", "}"]


def test_detect__from_a_segmenter_takes_its_backbone_and_says_so(coco: Path, tmp_path: Path) -> None:
    ade, run = write_ade20k(tmp_path / "ade"), tmp_path / "segmenter"
    model = {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 8}
    optim = {"steps": 1, "batch_size": 2, "warmup_steps": 0}
    segment(segmentation_config(ade, run, model=model, optim=optim))
    told = detect(detection_config(coco, tmp_path / "run", init=str(run), model={}, **SHORT))["init"]
    num_heads = sum(not name.startswith("backbone.") for name in tensors_of(run))
    assert told[1] == f"of the segmenter the backbone alone is taken: {num_heads} keys are its pyramid and its heads"
