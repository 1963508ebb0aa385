"""Segmentation that goes on from a trained segmenter: what is taken, what starts anew and why, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import pytest
import torch
from going_on import line_of, other, tensors_of
from official import save
from official_segmenters import checkpoint, official_segmenter
from scenes import CLASSES, segmentation_config, write_ade20k
from shape_scenes import detection_config, write_shapes_coco
from tiny import finetune_config, stopped_after
from torch import Tensor

from mcbeit.detection.training import detect
from mcbeit.errors import ConfigError, Interrupted, WeightsError
from mcbeit.finetune import finetune
from mcbeit.relative_position import resize_table
from mcbeit.segmentation.loading import load_segmenter
from mcbeit.segmentation.setup import build
from mcbeit.segmentation.training import segment
from mcbeit.start import with_weights
from mcbeit.trained_outputs import CLASSES as CLASSES_FILE

OPEN: dict[str, Any] = {"model": {}, "head": {}, "preprocess": {}}  # all that weights may tell
SHORT: dict[str, Any] = {"optim": {"steps": 2, "batch_size": 4, "warmup_steps": 1, "lr": 1e-3}}
LAST = [f"{head}.conv_seg.{kind}" for head in ("auxiliary_head", "decode_head") for kind in ("bias", "weight")]
LAYERS = "auxiliary_head.conv_seg, decode_head.conv_seg"


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade20k(tmp_path_factory.mktemp("scenes") / "ade")


@pytest.fixture(scope="module")
def trained(ade: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose heads are none of the defaults."""
    run = tmp_path_factory.mktemp("trained") / "run"
    head = {"taps": [0, 1, 2, 3], "channels": 16, "auxiliary_channels": 8}
    colours = {"image_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.2]}
    segment(segmentation_config(ade, run, head=head, preprocess=colours, **SHORT))
    return run


def test_with_weights__takes_heads_and_colours_from_a_segmenter(ade: Path, trained: Path, tmp_path: Path) -> None:
    config = with_weights(segmentation_config(ade, tmp_path, init=str(trained), **OPEN))
    assert (config.head.taps, config.head.channels, config.head.auxiliary_channels) == ((0, 1, 2, 3), 16, 8)
    assert (config.model.shape, config.model.patch_size) == ((32, 4, 2), 4)
    assert (config.preprocess.image_size, config.preprocess.mean) == (32, (0.4, 0.5, 0.6))
    whole = segmentation_config(ade, tmp_path, init=str(trained), **{**OPEN, "head": {"auxiliary_weight": 0.1}})
    assert with_weights(whole).head.auxiliary_weight == 0.1
    assert with_weights(config) is config


def test_build__of_the_same_classes_takes_everything(ade: Path, trained: Path, tmp_path: Path) -> None:
    config = with_weights(segmentation_config(ade, tmp_path, init=str(trained), **OPEN))
    parts = build(config, 3, classes=CLASSES)
    state = parts.model.state_dict()
    assert other(state, tensors_of(trained)) == []
    assert int(state["decode_head.bottleneck.bn.num_batches_tracked"]) == 2
    assert len(parts.state.numbers["init"]) == 1
    assert line_of(parts).endswith(
        f"{len(state)} keys: {len(state)} loaded; the scores of the classes ({LAYERS}) go on: both have the "
        "same 3 classes, by name"
    )


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        (("road", "sky"), "the weights have 3 classes, the images 2"),
        (
            ("ground", "square", "disc"),
            "both have 3 classes, but 2 of other names, such as 'disc' in the weights and 'square' in the images",
        ),
    ],
    ids=["number", "names"],
)
def test_build__of_other_classes_starts_the_last_layers_anew(
    ade: Path, trained: Path, tmp_path: Path, classes: tuple[str, ...], why: str
) -> None:
    config = with_weights(segmentation_config(ade, tmp_path, init=str(trained), **OPEN))
    parts, before = build(config, len(classes), classes=classes), tensors_of(trained)
    state = parts.model.state_dict()
    drawn = build(config.model_copy(update={"init": "random"}), len(classes)).model.state_dict()
    for name, value in state.items():
        assert torch.equal(value, drawn[name] if name in LAST else before[name]), name
    assert not torch.equal(before["decode_head.psp_modules.0.1.bn.running_mean"], torch.zeros(16))
    assert line_of(parts).endswith(
        f"{len(state) - 4} loaded, 4 ignored; the scores of the classes ({LAYERS}) start anew: {why}"
    )


def _without_run(run: Path, folder: Path) -> Path:
    return Path(
        copyfile(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors", folder / "s.safetensors")
    )


@pytest.mark.parametrize("is_known", ["of the weights", "of the images"])
def test_build__of_as_many_classes_without_names_goes_on_and_says_so(
    ade: Path, trained: Path, tmp_path: Path, is_known: str
) -> None:
    init = trained if is_known == "of the weights" else _without_run(trained, tmp_path)
    changes = {**OPEN, "preprocess": {"image_size": 32}, "head": {"taps": [0, 1, 2, 3]}}
    config = with_weights(segmentation_config(ade, tmp_path / "run", init=str(init), **changes))
    parts = build(config, 3, classes=None if is_known == "of the weights" else ("a", "b", "c"))
    assert other(parts.model.state_dict(), tensors_of(trained)) == []
    assert line_of(parts).endswith(
        "go on: both have 3 classes, of names that are not known: right for the same ones only"
    )
    told = ["no file tells which blocks its segmenter uses: head.taps is [0, 1, 2, 3]"]
    assert parts.state.numbers["init"][1:2] == (told if init != trained else [])


def test_build__at_another_size_resizes_tables(ade: Path, trained: Path, tmp_path: Path) -> None:
    changes = {**OPEN, "preprocess": {"image_size": 48}}
    config = with_weights(segmentation_config(ade, tmp_path, init=str(trained), **changes))
    parts, before = build(config, 3, classes=CLASSES), tensors_of(trained)
    state = parts.model.state_dict()
    tables = [f"backbone.blocks.{i}.attn.relative_position_bias_table" for i in range(4)]
    for name, value in before.items():
        wanted = resize_table(value, (8, 8), (12, 12)) if name in tables else value
        assert torch.equal(state[name], wanted), name
    assert f"{len(state) - 4} loaded, 4 resized;" in line_of(parts)


def test_build__of_the_official_layout_takes_pyramid_and_heads(ade: Path, tmp_path: Path) -> None:
    state = official_segmenter()
    file = save(checkpoint(state), tmp_path / "upernet.pth")
    changes = {**OPEN, "head": {"taps": [0, 1, 2, 3]}}  # which blocks were used, no file tells
    config = with_weights(segmentation_config(ade, tmp_path / "run", init=str(file), **changes))
    assert (config.head.channels, config.head.auxiliary_channels) == (8, 8)
    parts = build(config, 2, classes=("road", "sky"))
    ours = parts.model.state_dict()
    assert torch.equal(ours["pyramid.fpn1.1.running_var"], state["backbone.fpn1.1.running_var"])
    assert torch.equal(ours["auxiliary_head.convs.0.conv.weight"], state["auxiliary_head.convs.0.conv.weight"])
    assert torch.equal(ours["backbone.blocks.3.gamma_2"], state["backbone.blocks.3.gamma_2"])
    assert bool(ours["backbone.mask_token"].any())  # drawn: the file has none
    assert ours["decode_head.conv_seg.weight"].shape[0] == 2
    assert "starts anew: mask_token, fc_norm" in line_of(parts)
    assert line_of(parts).endswith("start anew: the weights have 3 classes, the images 2")


def test_segment__names_every_key_that_is_not_that_of_the_segmenter(ade: Path, trained: Path, tmp_path: Path) -> None:
    depth = {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 8}
    config = segmentation_config(ade, tmp_path / "run", init=str(trained), model=depth, head={"channels": 24})
    with pytest.raises(ConfigError) as caught:
        segment(config)
    with pytest.raises(ConfigError) as told_before:
        with_weights(config)
    assert str(told_before.value) == str(caught.value)
    (file,) = (trained / "checkpoints").glob("step-*/model.safetensors")
    assert str(caught.value).splitlines() == [
        f"the model of the config is not that of init={file}:",
        "  model.depth: 8 in the config, 4 in the weights",
        "  model.patch_size: 8 in the config, 4 in the weights",
        "  head.channels: 24 in the config, 16 in the weights",
        "set these keys to what the weights have, or leave them out to have them taken from the weights",
    ]
    assert not (tmp_path / "run").exists()


def test_segment__refuses_other_blocks_than_the_segmenter_uses(ade: Path, tmp_path: Path) -> None:
    deep = {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 4}
    head = {"taps": [3, 5, 6, 7], "channels": 8}
    segment(segmentation_config(ade, tmp_path / "deep", model=deep, head=head, **SHORT))
    config = segmentation_config(ade, tmp_path / "run", init=str(tmp_path / "deep"), model={}, head={"taps": None})
    with pytest.raises(ConfigError, match=r"head\.taps: \(1, 3, 5, 7\) in the config, \(3, 5, 6, 7\) in the weights"):
        segment(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("decode_head.bottleneck.conv.weight"),
            "lacks decode_head.bottleneck.conv.weight; its backbone alone is what .* convert '.*upernet.pth'",
        ),
        (
            lambda state: state.pop("auxiliary_head.conv_seg.weight"),
            "lacks the auxiliary head.*alone is what `mcbeit weights",
        ),
        (lambda state: state["backbone.fpn2.0.bias"].fill_(torch.nan), "not finite .* pyramid.fpn2.0.bias"),
    ],
    ids=["missing", "no auxiliary head", "nan"],
)
def test_segment__refuses_a_damaged_segmenter_before_any_work(
    change: Callable[[dict[str, Tensor]], Any], message: str, ade: Path, tmp_path: Path
) -> None:
    state = official_segmenter()
    change(state)
    file = save(checkpoint(state), tmp_path / "upernet.pth")
    with pytest.raises(WeightsError, match=message):
        segment(segmentation_config(ade, tmp_path / "run", init=str(file), **OPEN))
    assert not (tmp_path / "run").exists()


def test_segment__on_other_classes_resumes_as_if_never_stopped(trained: Path, tmp_path: Path) -> None:
    mine = write_ade20k(tmp_path / "mine", classes=("ground", "shape"))
    changes: dict[str, Any] = {**OPEN, "log": {"every_steps": 1, "tensorboard": False}}
    optim = {"steps": 4, "batch_size": 4, "warmup_steps": 1, "lr": 1e-3}
    changes |= {"init": str(trained), "optim": optim, "checkpoint": {"every_epochs": 0.5}}
    whole = segment(segmentation_config(mine, tmp_path / "whole", **changes))
    config = segmentation_config(mine, tmp_path / "parts", **changes)
    with pytest.raises(Interrupted, match="stopped after 2 steps"):
        segment(config, worker=stopped_after(2))
    parts = segment(config, resume=True)
    assert other(tensors_of(tmp_path / "parts"), tensors_of(tmp_path / "whole")) == []
    assert parts["loss"] == whole["loss"]
    assert parts["init"] == whole["init"]
    assert whole["init"][0].endswith("start anew: the weights have 3 classes, the images 2")
    assert load_segmenter(tmp_path / "whole").model.num_classes == 2
    assert '"shape"' in (tmp_path / "whole" / CLASSES_FILE).read_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"classes": ["ground",', "no such list"), ("[1, 2, 3]", "no such list"), ('{"classes": ["a"]}', "1 of them")],
    ids=["cut off", "no mapping", "fewer"],
)
def test_build__refuses_names_that_are_not_those_of_the_outputs(
    ade: Path, trained: Path, tmp_path: Path, text: str, found: str
) -> None:
    run = copytree(trained, tmp_path / "edited")
    (run / CLASSES_FILE).write_text(text)
    config = with_weights(segmentation_config(ade, tmp_path / "run", init=str(run), **OPEN))
    with pytest.raises(
        WeightsError, match=rf"classes\.json' should name the 3 classes .* it has {found}\. Mend it, or"
    ):
        build(config, 3, classes=CLASSES)


def test_segment__goes_on_from_one_whose_names_are_not_kept(ade: Path, tmp_path: Path) -> None:
    segment(segmentation_config(ade, tmp_path / "old", **SHORT))
    (tmp_path / "old" / CLASSES_FILE).unlink()  # as runs were before
    summary = segment(segmentation_config(ade, tmp_path / "run", init=str(tmp_path / "old"), **OPEN, **SHORT))
    assert "of names that are not known" in summary["init"][0]


def test_segment__tells_other_colours_than_those_of_the_segmenter(ade: Path, trained: Path, tmp_path: Path) -> None:
    changes = {**OPEN, "preprocess": {"mean": [0.5, 0.5, 0.5]}}
    config = with_weights(segmentation_config(ade, tmp_path, init=str(trained), **changes))
    told = build(config, 3, classes=CLASSES).state.numbers["init"]
    assert told[1:] == ["preprocess.mean is [0.5, 0.5, 0.5], the weights come from [0.4, 0.5, 0.6]"]


def test_segment__from_a_detector_is_refused(ade: Path, tmp_path: Path) -> None:
    coco = write_shapes_coco(tmp_path / "coco")
    detect(detection_config(coco, tmp_path / "detector", optim={"steps": 1, "batch_size": 2}))
    with pytest.raises(WeightsError, match=r"no cls token, .* As init it is for detection alone"):
        segment(segmentation_config(ade, tmp_path / "run", init=str(tmp_path / "detector"), **OPEN))
    assert not (tmp_path / "run").exists()


def test_finetune__from_a_segmenter_takes_its_backbone_and_says_so(trained: Path, shapes: Path, tmp_path: Path) -> None:
    optim = {"epochs": 0.5, "warmup_epochs": 0, "batch_size": 8}
    config = finetune_config(shapes, tmp_path, init=str(trained), model={}, preprocess={}, optim=optim)
    told = finetune(config)["init"]
    num_heads = sum(not name.startswith("backbone.") for name in tensors_of(trained))
    assert told[1] == f"of the segmenter the backbone alone is taken: {num_heads} keys are its pyramid and its heads"
