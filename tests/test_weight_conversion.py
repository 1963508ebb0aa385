"""From any layout to any other and back: the same bits, and what a layout cannot hold is told."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from official import Shape, official_state, pretrain_checkpoint, same_bits, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.weight_conversion import convert_weights
from mcbeit.weight_fitting import load_backbone
from mcbeit.weight_layouts import timm_call
from mcbeit.weights import read_weights

PRETRAIN_HEAD = {"mask_token", "lm_head.weight", "lm_head.bias"}
SUFFIXES = {"mcbeit": ".safetensors", "timm": ".safetensors", "official-pretrain": ".pth", "official-finetune": ".pth"}


def chain(file: Path, *layouts: str) -> dict[str, Tensor]:
    """The tensors after one conversion after another."""
    for number, layout in enumerate(layouts):
        out = file.with_name(f"{number}{SUFFIXES[layout]}")
        convert_weights(file, out, layout, force=True)
        file = out
    if file.suffix == ".safetensors":
        return load_file(file)
    return dict(torch.load(file, weights_only=True)["model"])


def without(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


# round trips


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "options", [{}, {"absolute": True}, {"absolute": True, "relative": False, "layer_scale": False}]
)
def test_convert_weights__official_pretrain_and_back(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    state = official_state("pretrain", Shape(dim=64, heads=1), **options)
    state = halved(state) if dtype == "fp16" else state
    file = save(pretrain_checkpoint(state), tmp_path / "official.pth")
    assert same_bits(chain(file, "mcbeit", "official-pretrain"), state)
    assert same_bits(chain(file, "official-pretrain"), state)
    rest = without(state, PRETRAIN_HEAD)  # timm has no place for it, and says so
    assert same_bits(chain(file, "timm", "official-pretrain"), rest)
    assert same_bits(chain(file, "mcbeit", "timm", "mcbeit", "official-pretrain"), rest)
    assert same_bits(chain(file, "official-finetune", "official-pretrain"), rest)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("options", [{}, {"use_cls": True}, {"absolute": True}])
def test_convert_weights__official_finetune_and_back(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    state = official_state("finetune", **options)
    state = halved(state) if dtype == "fp16" else state
    file = save({"module": state}, tmp_path / "official.pt")
    assert same_bits(chain(file, "mcbeit", "official-finetune"), state)
    assert same_bits(chain(file, "timm", "official-finetune"), state)
    assert same_bits(chain(file, "mcbeit", "timm", "mcbeit", "official-finetune"), state)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_convert_weights__ours_and_back(kind: Any, tmp_path: Path) -> None:
    file = save({"model": official_state(kind)}, tmp_path / "official.pth")
    ours = chain(file, "mcbeit")
    convert_weights(file, tmp_path / "ours.safetensors", "mcbeit")
    official = f"official-{kind}"
    assert same_bits(chain(tmp_path / "ours.safetensors", official, "mcbeit"), ours)
    rest = without(ours, {"backbone.mask_token", "lm_head.weight", "lm_head.bias"})
    assert same_bits(chain(tmp_path / "ours.safetensors", "timm", "mcbeit"), rest)


def test_convert_weights__a_shared_table_for_the_finetuning_layout(tmp_path: Path) -> None:
    state = official_state("pretrain")
    file = save({"model": state}, tmp_path / "official.pth")
    found = chain(file, "official-finetune")
    wanted = official_state("finetune")
    assert found.keys() == {name for name in wanted if not name.startswith(("head", "fc_norm"))} | {
        "norm.weight",
        "norm.bias",
    }
    for i in (0, 1):
        table = f"blocks.{i}.attn.relative_position_bias_table"
        assert torch.equal(found[table], state["rel_pos_bias.relative_position_bias_table"])


def test_convert_weights__to_another_size(tmp_path: Path) -> None:
    file = save({"model": halved(official_state("finetune"))}, tmp_path / "official.pth")
    lines = convert_weights(file, tmp_path / "large.pth", "official-finetune", image_size=24)
    assert "resized, bias table, 4 x 4 to 6 x 6 patches" in lines[1]
    large = torch.load(tmp_path / "large.pth", weights_only=True)["model"]
    reference = official_state("finetune", Shape(grid=6))
    assert {name: value.shape for name, value in large.items()} == {
        name: value.shape for name, value in reference.items()
    }
    index = "blocks.1.attn.relative_position_index"
    assert torch.equal(large[index], reference[index])
    assert large["blocks.1.attn.relative_position_bias_table"].dtype == torch.float16
    assert read_weights(tmp_path / "large.pth").image_size == 24


# timm


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("pretrain", {}),
        ("pretrain", {"absolute": True}),
        ("pretrain", {"absolute": True, "relative": False, "layer_scale": False}),
        ("finetune", {}),
        ("finetune", {"use_cls": True}),
    ],
)
def test_convert_weights__timm_loads_it_strictly(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    state = official_state(kind, Shape(dim=64, heads=1), **options)
    file = save({"model": state}, tmp_path / "official.pth")
    out = tmp_path / "timm.safetensors"
    lines = convert_weights(file, out, "timm")
    weights = read_weights(file)
    call = timm_call(weights.model, weights.image_size, weights.num_classes)
    assert lines[-1] == f"load into: {call}"
    with safe_open(out, framework="pt") as opened:
        assert opened.metadata()["timm"] == str(call)
    model = timm.create_model(call.name, **call.options).eval()
    model.load_state_dict(load_file(out), strict=True)
    ours, images = load_backbone(out).model, torch.randn(2, 3, 16, 16)
    tokens = ours.forward_tokens(images)
    torch.testing.assert_close(model.forward_features(images), tokens)
    torch.testing.assert_close(load_backbone(file).model.forward_tokens(images), tokens)
    if kind == "finetune":
        pooled = tokens[:, 0] if options else ours.pooled(tokens)
        logits = torch.nn.functional.linear(pooled, state["head.weight"], state["head.bias"])
        torch.testing.assert_close(model(images), logits)


def test_convert_weights__timm_pickled(tmp_path: Path) -> None:
    state = official_state("finetune", index=False)
    file = save({"model": state}, tmp_path / "official.pth")
    convert_weights(file, tmp_path / "timm.pth", "timm")
    assert same_bits(torch.load(tmp_path / "timm.pth", weights_only=True), state)


@pytest.mark.parametrize(
    ("size", "call"),
    [
        ("base", "timm.create_model('beit_base_patch16_224')"),
        ("large", "timm.create_model('beit_large_patch16_224')"),
        ("small", "timm.create_model('beit_base_patch16_224', embed_dim=384, depth=12, num_heads=6)"),
    ],
)
def test_timm_call__finetuned_sizes(size: Any, call: str) -> None:
    from mcbeit.vit import ModelConfig

    config = ModelConfig(size=size, bias_tables="per-block", final_norm="pooled")
    assert str(timm_call(config, 224, 1000)) == call


# what is told


def test_convert_weights__tells_what_is_left_out_and_what_is_not_there(tmp_path: Path) -> None:
    pretrain = save({"model": official_state("pretrain")}, tmp_path / "p.pth")
    finetune = save({"model": official_state("finetune")}, tmp_path / "f.pth")
    lines = convert_weights(pretrain, tmp_path / "t.safetensors", "timm")
    assert lines[0].startswith(f"{pretrain} (official-pretrain) -> {tmp_path / 't.safetensors'} (timm): 36 tensors, ")
    assert lines[1] == "left out, timm has no place for it: mask_token, lm_head.weight, lm_head.bias"
    lines = convert_weights(pretrain, tmp_path / "f2.pth", "official-finetune")
    assert lines[1] == "converted, shared table, copied to 2 blocks: rel_pos_bias.relative_position_bias_table"
    assert lines[3] == "not in it, the file has none: head.weight, head.bias"
    with pytest.raises(WeightsError, match="which differ: they do not fit into one shared table"):
        convert_weights(finetune, tmp_path / "p2.pth", "official-pretrain")
    assert not (tmp_path / "p2.pth").exists()


def test_convert_weights__manifest(tmp_path: Path) -> None:
    file = save(pretrain_checkpoint(official_state("pretrain")), tmp_path / "checkpoint-799.pth")
    convert_weights(file, tmp_path / "w.safetensors", "mcbeit")
    manifest = json.loads((tmp_path / "w.json").read_text())
    assert (manifest["kind"], manifest["format"], manifest["image_size"]) == ("mcbeit-weights", 1, 16)
    assert (manifest["vocab_size"], manifest["num_classes"]) == (16, None)
    assert manifest["origin"] == "checkpoint-799.pth (official-pretrain)"
    assert manifest["preprocess"]["mean"] == [0.485, 0.456, 0.406]
    assert manifest["model"]["dim"] == 32


# whole or not at all


def test_convert_weights__refuses_before_it_reads(tmp_path: Path) -> None:
    file = save({"model": official_state("pretrain")}, tmp_path / "w.pth")
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "folder.pth").mkdir()
    for out, layout, message in (
        ("w2.pth", "official", "there is no layout 'official' of weights; choose mcbeit, timm, official-pretrain"),
        ("w2.pth", "mcbeit", "weights of layout mcbeit end in .safetensors, found"),
        ("w2.safetensors", "official-pretrain", "end in .pth or .pt or .bin, found"),
        ("there.safetensors", "timm", "exists; choose another name, or overwrite it with --force"),
        ("other.safetensors", "mcbeit", "other.json' exists"),
        ("folder.pth", "timm", "exists; choose another name"),
        ("missing/w.pth", "timm", "does not exist; make it first"),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)):
            convert_weights(file, tmp_path / out, layout)
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


def test_convert_weights__force_overwrites_even_its_own_source(tmp_path: Path) -> None:
    save_file(official_state("pretrain", index=False), tmp_path / "w.safetensors")
    first = load_file(tmp_path / "w.safetensors")
    first = {name: value.clone() for name, value in first.items()}
    convert_weights(tmp_path / "w.safetensors", tmp_path / "w.safetensors", "mcbeit", force=True)
    assert same_bits(read_weights(tmp_path / "w.safetensors").tensors, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


def test_convert_weights__a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save({"model": official_state("pretrain")}, tmp_path / "w.pth")

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mcbeit.weight_conversion.save_file", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        convert_weights(file, tmp_path / "out.safetensors", "mcbeit")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
