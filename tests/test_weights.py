"""Every layout of the official code is read with an account of every key; what no rule knows is an error."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from official import (
    BASE,
    LARGE,
    TINY,
    Shape,
    official_state,
    pretrain_checkpoint,
    save,
)
from safetensors.torch import save_file
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.relative_position import resize_table
from mcbeit.vit import ModelConfig, VisionTransformer, resize_positions
from mcbeit.weight_account import Account
from mcbeit.weight_architecture import infer_model, model_shapes
from mcbeit.weight_fitting import load_backbone
from mcbeit.weights import read_weights

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def reference(config: ModelConfig, state: dict[str, Tensor], image_size: int = 16) -> VisionTransformer:
    """A backbone filled by hand."""
    model = VisionTransformer(config, image_size=image_size).eval()
    own = {name: state.get(name, value) for name, value in model.state_dict().items()}
    model.load_state_dict(own)
    return model


def tiny(**options: Any) -> ModelConfig:
    return ModelConfig(**{"dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4, **options})


# the account of each layout


def test_load_backbone__official_pretrain(tmp_path: Path) -> None:
    state = official_state("pretrain")
    loaded = load_backbone(save(pretrain_checkpoint(state), tmp_path / "checkpoint-799.pth"))
    assert loaded.account.counts() == {"loaded": 37, "converted": 0, "resized": 0, "ignored": 7}
    assert loaded.account.fresh == {}
    ignored = {entry.rule: keys for entry, keys in loaded.account.by_rule().items() if entry.fate == "ignored"}
    assert ignored == {
        "index buffer, computed anew": ["rel_pos_bias.relative_position_index"],
        "vocabulary head, which is no part of a backbone": ["lm_head.weight", "lm_head.bias"],
        "training state, beside the weights": ["optimizer", "scaler"],
        "no weights, beside them": ["epoch", "args"],
    }
    assert (loaded.image_size, loaded.config.shape) == (16, (32, 2, 2))
    assert (loaded.config.bias_tables, loaded.config.final_norm, loaded.config.position) == (
        "shared",
        "tokens",
        "relative",
    )
    assert not loaded.model.training
    wanted = reference(loaded.config, state).forward_tokens(IMAGES)
    assert torch.equal(loaded.model.forward_tokens(IMAGES), wanted)


def test_load_backbone__official_finetune_in_fp16_by_deepspeed(tmp_path: Path) -> None:
    state = official_state("finetune")
    halves = {f"module.{name}": value.half() if value.is_floating_point() else value for name, value in state.items()}
    (tmp_path / "checkpoint-9").mkdir()
    save({"module": halves, "ds_version": "0.4.0"}, tmp_path / "checkpoint-9" / "mp_rank_00_model_states.pt")
    loaded = load_backbone(tmp_path / "checkpoint-9")
    assert loaded.account.counts() == {"loaded": 0, "converted": 37, "resized": 0, "ignored": 5}
    assert loaded.account.entries["module.cls_token"].rule == "float16 to float32"
    assert list(loaded.account.fresh) == ["mask_token"]
    assert (loaded.config.bias_tables, loaded.config.final_norm) == ("per-block", "pooled")
    assert {value.dtype for value in loaded.model.parameters()} == {torch.float32}
    by_hand = reference(loaded.config, {name: value.half().float() for name, value in state.items()})
    tokens = loaded.model.forward_tokens(IMAGES)
    assert torch.equal(tokens, by_hand.forward_tokens(IMAGES))
    pooled = torch.nn.functional.layer_norm(
        tokens[:, 1:].mean(dim=1), (32,), by_hand.fc_norm.weight, by_hand.fc_norm.bias, eps=1e-6
    )
    torch.testing.assert_close(loaded.model.pooled(tokens), pooled)


def test_load_backbone__beit_of_in1k_has_absolute_positions_only(tmp_path: Path) -> None:
    shape = Shape(dim=128)
    state = official_state("pretrain", shape, absolute=True, relative=False, layer_scale=False)
    loaded = load_backbone(save({"model": state}, tmp_path / "beit_base_patch16_224_pt1k_800ep.pth"))
    assert loaded.account.counts() == {"loaded": 33, "converted": 0, "resized": 0, "ignored": 2}
    assert (loaded.config.position, loaded.config.layer_scale, loaded.config.shape) == ("learned", 0.0, (128, 2, 2))
    assert torch.equal(loaded.model.forward_tokens(IMAGES), reference(loaded.config, state).forward_tokens(IMAGES))


def test_load_backbone__finetuned_on_the_cls_token_keeps_norm(tmp_path: Path) -> None:
    state = official_state("finetune", use_cls=True)
    loaded = load_backbone(save({"model": state}, tmp_path / "cls.pth"))
    assert (loaded.config.bias_tables, loaded.config.final_norm) == ("per-block", "tokens")
    assert torch.equal(loaded.model.forward_tokens(IMAGES), reference(loaded.config, state).forward_tokens(IMAGES))


@pytest.mark.parametrize(
    ("wrap", "container"),
    [
        (lambda state: state, ""),
        (lambda state: {"model": state}, "model"),
        (lambda state: {"module": state, "global_steps": 5}, "module"),
        (lambda state: {"state_dict": {f"backbone.{key}": value for key, value in state.items()}}, "state_dict"),
        (lambda state: {"model_ema": {f"module.{key}": value for key, value in state.items()}}, "model_ema"),
        (lambda state: {"model": {"module": state}, "epoch": "best"}, "model.module"),
        (lambda state: {"model": {f"encoder.{key}": value for key, value in state.items()}}, "model"),
    ],
)
def test_read_weights__every_container(wrap: Callable[[Any], Any], container: str, tmp_path: Path) -> None:
    state = official_state("finetune", index=False)
    weights = read_weights(save(wrap(state), tmp_path / "weights.pth"))
    assert weights.container == container
    assert weights.tensors.keys() == state.keys()
    assert all(torch.equal(weights.tensors[name], value) for name, value in state.items())


def test_read_weights__other_weights_beside_are_ignored_by_rule(tmp_path: Path) -> None:
    state, ema = official_state("finetune"), official_state("finetune", seed=1)
    weights = read_weights(save({"model": state, "model_ema": ema, "epoch": "best"}, tmp_path / "checkpoint-best.pth"))
    assert torch.equal(weights.tensors["cls_token"], state["cls_token"])
    assert weights.account.entries["model_ema"].rule.startswith("other weights of the same model")


def test_read_weights__files_of_before_torch_1_6(tmp_path: Path) -> None:
    state = official_state("pretrain")
    torch.save(pretrain_checkpoint(state), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(tmp_path / "old.pth").tensors["cls_token"], state["cls_token"])


def test_read_weights__a_whole_bias_of_qkv_is_split(tmp_path: Path) -> None:
    state = official_state("finetune")
    for i, middle in enumerate((torch.zeros(32), torch.ones(32))):
        query, value = state.pop(f"blocks.{i}.attn.q_bias"), state.pop(f"blocks.{i}.attn.v_bias")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([query, middle, value])
    loaded = load_backbone(save(state, tmp_path / "whole.pth"))
    rules = [loaded.account.entries[f"blocks.{i}.attn.qkv.bias"] for i in (0, 1)]
    assert [entry.fate for entry in rules] == ["converted", "converted"]
    assert rules[0].rule == "split; the keys' part is zero"
    assert "adds the same to all scores of a query" in rules[1].rule
    by_hand = reference(loaded.config, official_state("finetune"))
    assert torch.equal(loaded.model.forward_tokens(IMAGES), by_hand.forward_tokens(IMAGES))


# other models, other sizes


def test_load_backbone__shared_table_copied_to_every_block_is_the_same_function(tmp_path: Path) -> None:
    file = save(pretrain_checkpoint(official_state("pretrain")), tmp_path / "shared.pth")
    expanded = load_backbone(file, config=tiny(bias_tables="per-block"))
    key = "rel_pos_bias.relative_position_bias_table"
    assert expanded.account.entries[key] == ("converted", "shared table, copied to 2 blocks")
    shared = load_backbone(file).model.forward_tokens(IMAGES)
    torch.testing.assert_close(expanded.model.forward_tokens(IMAGES), shared, atol=1e-5, rtol=1e-5)
    tables = [block.attn.relative_position_bias_table for block in expanded.model.blocks]
    assert torch.equal(*tables)
    assert tables[0].data_ptr() != tables[1].data_ptr()


def test_load_backbone__tables_that_differ_do_not_become_one(tmp_path: Path) -> None:
    file = save({"model": official_state("finetune")}, tmp_path / "finetuned.pth")
    with pytest.raises(WeightsError, match=r"the 2 blocks of .* have bias tables of their own, which differ"):
        load_backbone(file, config=tiny(final_norm="pooled"))


def test_load_backbone__the_other_kind_of_norm_starts_anew(tmp_path: Path) -> None:
    file = save({"model": official_state("finetune")}, tmp_path / "finetuned.pth")
    loaded = load_backbone(file, config=tiny(bias_tables="per-block"))
    assert {"norm.weight", "norm.bias"} <= set(loaded.account.fresh)
    assert loaded.account.entries["fc_norm.weight"].fate == "ignored"
    assert (loaded.model.norm.weight == 1).all()


@pytest.mark.parametrize(("kind", "absolute"), [("pretrain", False), ("pretrain", True), ("finetune", False)])
def test_load_backbone__at_another_resolution(kind: Any, absolute: bool, tmp_path: Path) -> None:
    state = official_state(kind, absolute=absolute)
    loaded = load_backbone(save({"model": state}, tmp_path / "w.pth"), image_size=24)
    model, old, new = loaded.model, (4, 4), (6, 6)
    assert model.grid == new
    tables = [name for name in state if name.endswith("bias_table")]
    for name in tables:
        assert torch.equal(model.state_dict()[name], resize_table(state[name], old, new))
        assert loaded.account.entries[name] == (
            "resized",
            "bias table, 4 x 4 to 6 x 6 patches on a geometric progression",
        )
    if absolute:
        assert torch.equal(model.state_dict()["pos_embed"], resize_positions(state["pos_embed"], old, new))
        assert loaded.account.entries["pos_embed"].rule == "positions, 4 x 4 to 6 x 6 patches, bicubic"
    assert loaded.account.counts()["resized"] == len(tables) + absolute
    again = reference(loaded.config, state)
    again.set_input_size(24)
    images = torch.randn(1, 3, 24, 24)
    assert torch.equal(model.forward_tokens(images), again.forward_tokens(images))


def test_resize_positions__is_bicubic_without_antialiasing() -> None:
    positions = torch.randn(1, 17, 8)
    resized = resize_positions(positions, (4, 4), (2, 2))
    grid = positions[:, 1:].view(1, 4, 4, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(2, 2), mode="bicubic", align_corners=False)
    assert torch.equal(resized[:, 1:], wanted.permute(0, 2, 3, 1).reshape(1, 4, 8))
    assert torch.equal(resized[:, :1], positions[:, :1])


def test_load_backbone__size_that_is_no_multiple_of_the_patch(tmp_path: Path) -> None:
    file = save(official_state("pretrain"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="image size 18 is no multiple of 4, the patch size of"):
        load_backbone(file, image_size=18)


def test_load_backbone__another_model_is_refused_with_every_difference(tmp_path: Path) -> None:
    file = save(official_state("pretrain"), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"does not fit the model: it lacks pos_embed, blocks.2.gamma_1"):
        load_backbone(file, config=tiny(depth=3, position="relative+learned"))
    with pytest.raises(WeightsError, match=re.escape("it has other sizes: blocks.0.mlp.fc1.weight is [128, 32], not")):
        load_backbone(file, config=tiny(mlp_ratio=2.0))
    with pytest.raises(WeightsError, match=r"it has too much: blocks.1.gamma_1"):
        load_backbone(file, config=tiny(depth=1))


def test_load_backbone__does_not_change_with_its_file(tmp_path: Path) -> None:
    state = official_state("pretrain")
    file = save(state, tmp_path / "w.pth")
    loaded = load_backbone(file)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.write(bytes(size))
    assert torch.equal(loaded.model.cls_token, state["cls_token"])
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


# what the shapes tell


@pytest.mark.parametrize(
    ("shape", "pretrain", "finetune"), [(BASE, 91_965_776, 86_530_984), (LARGE, 311_534_016, 304_430_568)]
)
def test_infer_model__published_sizes(shape: Shape, pretrain: int, finetune: int) -> None:
    for kind, count in (("pretrain", pretrain), ("finetune", finetune)):
        with torch.device("meta"):
            state = official_state(kind, shape, vocab_size=8192, num_classes=1000, index=False)  # type: ignore[arg-type]
        assert sum(value.numel() for value in state.values()) == count
        config, image_size = infer_model(state, "published")
        assert (config.shape, config.patch_size, image_size) == ((shape.dim, shape.depth, shape.heads), 16, 224)
        heads = {"lm_head.weight", "lm_head.bias", "head.weight", "head.bias"}
        backbone = {name: tuple(value.shape) for name, value in state.items() if name not in heads}
        shapes = model_shapes(config, image_size)
        assert shapes == {**backbone, "mask_token": (1, 1, shape.dim)}


@pytest.mark.parametrize(("grid", "image_size"), [(14, 224), (24, 384), (32, 512), (40, 640)])
def test_infer_model__image_size_by_the_rows_of_the_table(grid: int, image_size: int) -> None:
    state = official_state("pretrain", Shape(patch=16, grid=grid), index=False)
    assert infer_model(state, "weights")[1] == image_size


def test_infer_model__width_of_the_mlp() -> None:
    state = official_state("pretrain", Shape(dim=48))
    for hidden in range(1, 200, 7):
        state["blocks.0.mlp.fc1.weight"] = torch.zeros(hidden, 48)
        assert int(48 * infer_model(state, "weights")[0].mlp_ratio) == hidden


def test_infer_model__heads_without_a_table() -> None:
    state = official_state("pretrain", Shape(dim=96), absolute=True, relative=False)
    with pytest.raises(WeightsError, match=r"no multiple of 64\. Say it: --num-heads, or model\.num_heads"):
        infer_model(state, "weights")
    assert infer_model(state, "weights", num_heads=3)[0].shape == (96, 2, 3)
    with pytest.raises(WeightsError, match="has width 96, which 7 attention heads do not divide"):
        infer_model(state, "weights", num_heads=7)
    with pytest.raises(WeightsError, match="has 2 attention heads by its bias table, not 4"):
        infer_model(official_state("pretrain"), "weights", num_heads=4)


def remove(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: [state.pop(key) for key in list(state) if key.startswith(name)]


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.update({name: torch.zeros(*shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("decoder.weight", 2), "holds 1 key that a BEiT backbone does not have: decoder.weight"),
        (put("blocks.1.attn.k_norm.weight", 2), "does not have: blocks.1.attn.k_norm.weight"),
        (remove("cls_token"), "is no BEiT backbone: it has no 'cls_token'; it holds mask_token, patch_embed"),
        (remove("blocks.1.norm2"), "lacks what its model needs: blocks.1.norm2.weight, blocks.1.norm2.bias"),
        (remove("blocks.0."), "it has no 'blocks.0.mlp.fc1.weight'"),
        (remove("rel_pos_bias"), "has no positions: neither a relative_position_bias_table nor 'pos_embed'"),
        (remove("norm."), "has neither 'norm' nor 'fc_norm'"),
        (put("fc_norm.weight", 32), "has both 'norm' and 'fc_norm'"),
        (remove("lm_head.bias"), "has only one of lm_head.weight and lm_head.bias"),
        (put("lm_head.weight", 16, 31), "lm_head.weight is [16, 31], not [16, 32]"),
        (put("blocks.1.attn.qkv.weight", 32, 32), "blocks.1.attn.qkv.weight is [32, 32], not [96, 32]"),
        (put("patch_embed.proj.weight", 31, 3, 4, 4), "into width 31; square patches and width 32"),
        (put("patch_embed.proj.weight", 32, 3, 4, 8), "patches of 4 x 8 pixels"),
        (put("cls_token", 32), "'cls_token' of 'weights.pth' has 1 dimensions, a BEiT's has 3"),
        (put("rel_pos_bias.relative_position_bias_table", 50, 2), "has 50 rows, which is no (2n - 1)^2 + 3"),
        (put("blocks.0.attn.relative_position_bias_table", 52, 2), "and tables of single blocks"),
        (put("blocks.3.gamma_1", 32), "has blocks up to 3, but lacks 2"),
        (put("blocks.0.attn.qkv.bias", 96), "and also blocks.0.attn.q_bias, blocks.0.attn.v_bias"),
        (put("module.cls_token", 1, 1, 32), "holds two tensors for 'cls_token': 'cls_token' and 'module.cls_token'"),
        (
            lambda state: state["blocks.1.gamma_1"].fill_(float("nan")),
            "numbers that are not finite (NaN or infinite): blocks.1.gamma_1",
        ),
        (lambda state: state["norm.bias"].fill_(float("-inf")), "not finite (NaN or infinite): norm.bias"),
        (
            lambda state: state.update({"norm.bias": torch.zeros(32, dtype=torch.int64)}),
            "are no floating-point numbers: norm.bias",
        ),
        (lambda state: state.update({"version": 3}), "holds what is no tensor among its weights: version"),
    ],
)
def test_read_weights__names_what_is_wrong(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = official_state("pretrain")
    change(state)
    save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_weights("weights.pth")


def test_read_weights__absolute_positions_of_no_square(tmp_path: Path) -> None:
    state = official_state("pretrain", Shape(dim=64), absolute=True, relative=False)
    state["pos_embed"] = torch.zeros(1, 13, 64)
    with pytest.raises(WeightsError, match="is of 12 patches, which make no square grid"):
        read_weights(save(state, tmp_path / "w.pth"))


def test_read_weights__another_order_of_the_bias_table(tmp_path: Path) -> None:
    state = official_state("finetune")
    index = state["blocks.1.attn.relative_position_index"]
    index[1:, 1:] = index[1:, 1:].T.clone()  # key minus query
    with pytest.raises(WeightsError, match=r"in another order .*on 4 x 4 patches: blocks\.1\.attn\.relative_pos"):
        read_weights(save(state, tmp_path / "w.pth"))


def test_read_weights__layouts(tmp_path: Path) -> None:
    pretrain, finetune = official_state("pretrain"), official_state("finetune")
    bare = official_state("finetune", index=False)
    save_file(finetune, tmp_path / "index.safetensors")
    save_file(bare, tmp_path / "bare.safetensors")
    files = {
        save(pretrain, tmp_path / "p.pth"): "official-pretrain",
        save(finetune, tmp_path / "f.pth"): "official-finetune",
        save(bare, tmp_path / "b.pth"): "official-finetune",
        tmp_path / "index.safetensors": "official-finetune",
        tmp_path / "bare.safetensors": "timm",
    }
    assert {file: read_weights(file).layout for file in files} == files


# the account itself


def test_account__of_two_fates_the_one_that_changes_more_stays() -> None:
    account = Account("w", ("a", "b"))
    account.note("a", "resized", "larger")
    account.note("a", "converted", "float16 to float32")
    account.note("a", "converted", "float16 to float32")
    assert account.entries["a"] == ("resized", "larger; float16 to float32")
    with pytest.raises(WeightsError, match="'w' holds 1 key that a BEiT backbone does not have: b"):
        account.check_complete()


def test_account__names_some_keys_and_counts_the_others() -> None:
    with pytest.raises(WeightsError, match=r"holds 20 keys .*: k0, k1, k2, k3, k4, k5, k6, k7 and 12 more"):
        Account("w", tuple(f"k{i}" for i in range(20))).check_complete()


def test_account__as_json() -> None:
    account = Account("w", ("a",), fresh={"mask_token": "none"})
    account.note("a", "loaded")
    assert account.summary() == "1 keys: 1 loaded; starts anew: mask_token"
    assert account.as_json() == {
        "counts": {"loaded": 1, "converted": 0, "resized": 0, "ignored": 0},
        "keys": {"a": {"fate": "loaded", "rule": ""}},
        "fresh": {"mask_token": "none"},
    }


def test_tiny__is_what_the_tests_are_about() -> None:
    assert infer_model(official_state("pretrain", TINY), "w")[0] == tiny()
