"""Detectors from files: runs of ours and the layout of detectron2, every key accounted for, every order as there."""

from pathlib import Path
from typing import Any

import official_detectors as official
import pytest
import torch
from official import Shape, official_state, save
from official_detectors import CHANNELS, CLASSES, GRID, PATCH, WINDOW, checkpoint_of, official_state_of, small_detector
from shape_scenes import detection_config, write_shapes_coco
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from mcbeit.checkpoint import CheckpointFolder
from mcbeit.detection.loading import LoadedDetector, holds_detector, load_detector
from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.official_layout import official_name, our_name
from mcbeit.detection.training import detect
from mcbeit.detection.windowed import expand_table
from mcbeit.encoder import load_encoder
from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.weights import read_weights


@pytest.fixture(scope="module")
def detector() -> MaskRCNN:
    return small_detector()


@pytest.fixture(scope="module")
def state(detector: MaskRCNN) -> dict[str, Tensor]:
    return official_state_of(detector)


@pytest.fixture(scope="module")
def loaded(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> LoadedDetector:
    return load_detector(save(checkpoint_of(state), tmp_path_factory.mktemp("official") / "model_final.pth"))


def images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(256, (2, 3, GRID * PATCH, GRID * PATCH), dtype=torch.uint8, generator=generator)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4), (found - wanted).abs().max()


def test_load_detector__of_the_official_layout_accounts_for_every_key(
    state: dict[str, Tensor], loaded: LoadedDetector
) -> None:
    shape = loaded.shape
    assert (loaded.image_size, shape.window, shape.num_classes) == (GRID * PATCH, WINDOW, CLASSES)
    assert (shape.model.shape, shape.model.patch_size, shape.model.bias_tables) == ((32, 8, 2), PATCH, "shared")
    assert (shape.detector.channels, shape.detector.head_dim, shape.detector.pyramid) == (CHANNELS, 24, "fpn")
    assert loaded.preprocess == Preprocess(image_size=GRID * PATCH)
    account = loaded.account
    assert account.keys == (*state, "trainer", "iteration")
    # classes, boxes and masks, each with a bias; mean and deviation of pixels; two indices; trainer and iteration
    assert account.counts() == {"loaded": len(state) - 10, "converted": 8, "resized": 0, "ignored": 4}
    assert account.entries["trainer"].rule == "training state, beside the weights"
    assert account.entries["roi_heads.box_predictor.cls_score.bias"].rule.startswith("the background first")
    assert not loaded.model.training


def test_load_detector__finds_what_the_same_detector_finds(detector: MaskRCNN, loaded: LoadedDetector) -> None:
    unread = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}
    for name, value in loaded.model.state_dict().items():
        first = unread.get(name.rpartition(".")[0], 0)  # rows of the background
        assert torch.equal(value[first:] if first else value, detector.state_dict()[name][first:] if first else
                           detector.state_dict()[name]), name  # fmt: skip
    for found, wanted in zip(loaded.model.detect(images()), detector.detect(images()), strict=True):
        assert len(wanted.scores) > 0
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_load_detector__classes_boxes_and_masks_are_detectron2s(
    state: dict[str, Tensor], loaded: LoadedDetector
) -> None:
    heads, regions = loaded.model.roi_heads, random(5, CHANNELS, 7, 7)
    with torch.no_grad():
        logits, deltas = heads.box_predictor(heads.box_head(regions))
        theirs, their_deltas = official.classes_and_boxes(state, regions)
    scores, wanted = logits.softmax(dim=1), theirs.softmax(dim=1)
    close(scores[:, 0], wanted[:, CLASSES])  # the background
    close(scores[:, 1:], wanted[:, :CLASSES])
    boxes = torch.tensor([[10.0, 20.0, 50.0, 90.0]]).repeat(5, 1)
    decoded = heads.box_coder.decode(deltas, [boxes])
    for label in range(CLASSES):
        close(decoded[:, label + 1], official.moved(boxes, their_deltas[:, label], (10, 10, 5, 5)))
    regions = random(4, CHANNELS, 14, 14)
    with torch.no_grad():
        close(heads.mask_predictor(heads.mask_head(regions))[:, 1:], official.masks(state, regions))


def test_load_detector__pyramid_and_proposals_are_detectron2s(state: dict[str, Tensor], loaded: LoadedDetector) -> None:
    model, maps = loaded.model, [random(1, 32, 32 // 2**i, 32 // 2**i) for i in range(4)]
    rpn = model.rpn
    with torch.no_grad():
        found = model.pyramid.fpn({f"p{i + 2}": x for i, x in enumerate(maps)})
        levels = list(found.values())
        for one, other in zip(levels, official.pyramid(state, maps), strict=True):
            close(one, other)
        levels = [0.1 * level[:, :, : 4 - i // 2, : 3 - i // 2] for i, level in enumerate(levels)]  # taller than wide
        objectness, deltas = concat_box_prediction_layers(*rpn.head(levels))
        anchors = rpn.anchor_generator(ImageList(images()[:1], [(128, 128)]), levels)
        scores, boxes = official.proposals(state, levels)
    close(objectness.flatten(), scores)
    close(rpn.box_coder.decode(deltas, anchors)[:, 0], boxes)


def test_load_detector__bias_is_that_of_the_official_index(state: dict[str, Tensor], loaded: LoadedDetector) -> None:
    for kind, extent in (("windowed", (WINDOW, WINDOW)), ("global", (GRID, GRID))):
        stem = f"backbone.bottom_up.{kind}_rel_pos_bias.relative_position_"
        wanted = state[f"{stem}bias_table"][state[f"{stem}index"]].permute(2, 0, 1)
        table = loaded.model.backbone.get_submodule(f"{kind}_rel_pos_bias").relative_position_bias_table
        assert torch.equal(expand_table(table.detach(), extent), wanted)


def test_load_detector__of_finetuned_weights_has_a_table_per_block(tmp_path: Path) -> None:
    model = small_detector(bias_tables="per-block")
    state = official_state_of(model)
    assert "backbone.bottom_up.rel_pos_bias.3.relative_position_bias_table" in state
    found = load_detector(save({"model": state}, tmp_path / "d.pth"))
    assert (found.shape.model.bias_tables, found.shape.window) == ("per-block", WINDOW)
    assert all(
        torch.equal(one.boxes, other.boxes)
        for one, other in zip(found.model.detect(images()), model.detect(images()), strict=True)
    )


def test_load_detector__of_mimdets_mae_has_a_whole_bias_and_no_layer_scale(tmp_path: Path) -> None:
    model = small_detector(layer_scale=0.0)
    state = official_state_of(model, index=False, pixels=False)
    for i in range(8):
        stem = f"backbone.bottom_up.blocks.{i}.attn."
        query, value = state.pop(f"{stem}q_bias"), state.pop(f"{stem}v_bias")
        state[f"{stem}qkv.bias"] = torch.cat([query, random(32), value])
    found = load_detector(
        save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "d.pth")
    )
    assert found.shape.model.layer_scale == 0
    assert found.preprocess is None
    assert "softmax takes away" in found.account.entries["module.backbone.bottom_up.blocks.0.attn.qkv.bias"].rule
    assert all(
        torch.equal(one.scores, other.scores)
        for one, other in zip(found.model.detect(images()), model.detect(images()), strict=True)
    )


def test_load_detector__whose_blocks_all_see_everything(tmp_path: Path) -> None:
    state = official_state_of(small_detector(depth=4))
    windowed = "backbone.bottom_up.windowed_rel_pos_bias.relative_position_bias_table"
    found = load_detector(save({"model": {**state, windowed: random(49, 2)}}, tmp_path / "d.pth"))
    assert found.shape.window == GRID
    assert found.account.entries[windowed].rule.startswith("bias table of windows, where every block")


def test_load_detector__in_half_precision_with_anchors_of_older_versions(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    halves["pixel_mean"], halves["pixel_std"] = state["pixel_mean"], state["pixel_std"]
    anchors = {f"proposal_generator.anchor_generator.cell_anchors.{i}": official.anchors_of(i) for i in range(5)}
    found = load_detector(save({"model": {**halves, **anchors}}, tmp_path / "d.pth"))
    assert found.account.entries["backbone.fpn_output2.weight"].rule == "float16 to float32"
    assert {found.account.entries[name].rule for name in anchors} == {"anchors, computed anew"}
    assert {value.dtype for value in found.model.parameters()} == {torch.float32}


def test_load_detector__with_windows_that_do_not_fit_and_without_counters_of_batches(tmp_path: Path) -> None:
    model = small_detector(window=3)
    state = {name: value for name, value in official_state_of(model).items() if "num_batches" not in name}
    found = load_detector(save({"model": state}, tmp_path / "d.pth"))
    assert int(found.model.roi_heads.box_head[0][1].num_batches_tracked) == 0
    for one, other in zip(found.model.detect(images()), model.detect(images()), strict=True):
        assert torch.equal(one.boxes, other.boxes)


def test_names__lead_there_and_back(detector: MaskRCNN) -> None:
    for model in (detector, small_detector(bias_tables="per-block")):
        there = official_state_of(model)
        for name in model.state_dict():
            assert our_name(official_name(name).removeprefix("backbone.")) == name
            assert official_name(name) in there


CHANGES: dict[str, tuple[Any, str]] = {
    "missing": (lambda s: s.pop("backbone.fpn_lateral3.norm.bias"), "lacks backbone.fpn_lateral3.norm.bias"),
    "unknown": (
        lambda s: s.update({"teacher.weight": torch.zeros(2)}),
        "1 key that a Mask R-CNN on BEiT does not have",
    ),
    "surplus": (
        lambda s: s.update({"backbone.fpn_lateral2.bias": torch.zeros(CHANNELS)}),
        "has too much: backbone.fpn_lateral2.bias",
    ),
    "one convolution": (
        lambda s: s.update({"proposal_generator.rpn_head.conv.weight": torch.zeros(1)}),
        "does not have: proposal_generator.rpn_head.conv.weight",
    ),
    "size": (
        lambda s: s.update({"proposal_generator.rpn_head.anchor_deltas.bias": torch.zeros(60)}),
        r"proposal_generator.rpn_head.anchor_deltas.bias is \[60\], not \[12\]",
    ),
    "nan": (
        lambda s: s["roi_heads.mask_head.deconv.bias"].fill_(torch.nan),
        "not finite .* roi_heads.mask_head.deconv",
    ),
    "shared boxes": (
        lambda s: s.update({"roi_heads.box_predictor.bbox_pred.weight": torch.zeros(4, 24)}),
        "4 rows in 'roi_heads.box_predictor.bbox_pred.weight', not 12: detectors whose classes share boxes",
    ),
    "shared masks": (
        lambda s: s.update({"roi_heads.mask_head.predictor.bias": torch.zeros(1)}),
        "1 rows in 'roi_heads.mask_head.predictor.bias', not 3: detectors whose classes share masks",
    ),
    "colours": (
        lambda s: s.update({"pixel_mean": s["pixel_mean"].flip(0)}),
        "reads colours as blue, green, red by its 'pixel_mean'",
    ),
    "mean alone": (lambda s: s.pop("pixel_std"), "does not have: pixel_mean"),
    "anchors": (
        lambda s: s.update({"proposal_generator.anchor_generator.cell_anchors.1": official.anchors_of(1).flip(0)}),
        "has other anchors.*: proposal_generator.anchor_generator.cell_anchors.1",
    ),
    "index": (
        lambda s: s["backbone.bottom_up.global_rel_pos_bias.relative_position_index"].t_(),
        "another order of positions.*: backbone.bottom_up.global_rel_pos_bias.relative_position_index",
    ),
    "no windows": (
        lambda s: s.pop("backbone.bottom_up.windowed_rel_pos_bias.relative_position_bias_table"),
        "does not tell in which windows its blocks attend: it has no 'backbone.bottom_up.windowed_rel_pos_bias",
    ),
    "no square": (
        lambda s: s.update({"backbone.bottom_up.pos_embed": torch.zeros(1, 60, 32)}),
        "'backbone.bottom_up.pos_embed' of .* is for 60 places, which are no square",
    ),
    "dimensions": (
        lambda s: s.update({"backbone.bottom_up.pos_embed": torch.zeros(64, 32)}),
        r"'backbone.bottom_up.pos_embed' of .* is \[64, 32\]; 3 dimensions are wanted",
    ),
    "no vit": (
        lambda s: s.pop("backbone.bottom_up.patch_embed.proj.weight"),
        "it has no 'backbone.bottom_up.patch_emb",
    ),
    "heads": (
        lambda s: s.update({"backbone.bottom_up.windowed_rel_pos_bias.relative_position_bias_table": random(49, 5)}),
        r"model.dim \(32\) must be a multiple of model.num_heads \(5\)",
    ),
    "blocks": (
        lambda s: [s.pop(name) for name in list(s) if ".blocks.7." in name],
        "no detector that can be built: .* model.depth must be a multiple of 4, found 7",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_load_detector__names_what_does_not_fit(
    change: Any, message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = {name: value.clone() for name, value in state.items()}
    change(changed)
    with pytest.raises(WeightsError, match=message):
        load_detector(save({"model": changed}, tmp_path / "d.pth"))


def test_load_detector__of_other_patches_than_the_official_code_can_place(tmp_path: Path) -> None:
    from detecting import tiny_detector

    with pytest.raises(WeightsError, match=r"patches of 8 pixels; the official code .* patches of 16 only"):
        load_detector(save({"model": official_state_of(tiny_detector())}, tmp_path / "d.pth"))


def test_load_detector__of_a_run_is_what_was_trained(tmp_path: Path) -> None:
    coco = write_shapes_coco(tmp_path / "coco")
    config = detection_config(coco, tmp_path / "run", optim={"steps": 1, "batch_size": 2})
    detect(config)
    assert holds_detector(tmp_path / "run")
    loaded = load_detector(tmp_path / "run")
    stored = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert stored is not None
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, stored.tensors["model"][name]), name
    assert loaded.shape == (config.model, 64, 4, 2, config.detector)
    assert loaded.preprocess == config.preprocess
    assert loaded.account.counts()["loaded"] == len(stored.tensors["model"])
    copy = tmp_path / "detector.safetensors"  # without the config of the run: what is told by no tensor is the paper's
    copy.write_bytes((tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors").read_bytes())
    alone = load_detector(copy)
    assert (alone.shape.window, alone.image_size, alone.preprocess) == (4, 64, None)
    assert alone.shape.detector.proposals_before == (2000, 1000)
    for reader in (read_weights, load_encoder):
        with pytest.raises(WeightsError, match=r"is a detector, whose backbone no other job can take: it has no cls"):
            reader(tmp_path / "run")


def test_load_detector__refuses_a_backbone(tmp_path: Path) -> None:
    file = save({"model": official_state("finetune", Shape())}, tmp_path / "backbone.pth")
    assert not holds_detector(file)
    with pytest.raises(WeightsError, match=r"is no detector: it has no 'roi_heads.box_predictor.cls_score.weight'"):
        load_detector(file)
