"""Layer-wise learning rates: the official numbers, timm's, and where our clean rule differs."""

from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from timm.optim import param_groups_layer_decay

from mcbeit.classifier import Classifier
from mcbeit.config import validate
from mcbeit.device import PRECISIONS
from mcbeit.errors import ConfigError
from mcbeit.layer_decay import FinetuneOptimConfig, layer_groups, level_of, level_scales
from mcbeit.optim import adamw, decays
from mcbeit.state import TrainingState
from mcbeit.vit import ModelConfig, VisionTransformer


def small(**model: Any) -> Classifier:
    config = ModelConfig(dim=16, depth=3, num_heads=2, patch_size=4, final_norm="pooled", **model)
    return Classifier(VisionTransformer(config, image_size=8), 5)


def settings(model: Classifier, **optim: Any) -> dict[str, tuple[float, float]]:
    """The scale and the weight decay of every trainable parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layer_groups(model, len(model.backbone.blocks), FinetuneOptimConfig(**optim))
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_level_scales__of_vit_b() -> None:
    known = [0.003697, 0.005688, 0.008751, 0.013463, 0.020712, 0.031864, 0.049022]
    known += [0.075419, 0.116029, 0.178506, 0.274625, 0.4225, 0.65, 1.0]
    assert level_scales(12, 0.65) == pytest.approx(known, abs=5e-7)
    assert level_scales(3, 1.0) == [1.0] * 5


@pytest.mark.parametrize(
    ("name", "official", "clean"),
    [
        ("cls_token", 0, 0),
        ("mask_token", 0, 0),
        ("pos_embed", 0, 0),
        ("patch_embed.proj.weight", 0, 0),
        ("rel_pos_bias.relative_position_bias_table", 13, 0),
        ("blocks.0.norm1.weight", 1, 1),
        ("blocks.11.attn.relative_position_bias_table", 12, 12),
        ("norm.weight", 13, 13),
        ("fc_norm.bias", 13, 13),
        ("head.weight", 13, 13),
    ],
)
def test_level_of__every_kind_of_parameter(name: str, official: int, clean: int) -> None:
    assert (level_of(name, 12, "official"), level_of(name, 12, "clean")) == (official, clean)


def test_layer_groups__are_those_of_timm_where_blocks_have_tables_of_their_own() -> None:
    model = small(bias_tables="per-block", position="relative+learned")
    found = settings(model, layer_decay=0.65, weight_decay=0.3)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    theirs = Beit(**shape, init_values=0.1, use_rel_pos_bias=True, use_abs_pos_emb=True, global_pool="avg")
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    wanted = {}
    for group in param_groups_layer_decay(theirs, 0.3, {"pos_embed", "cls_token"}, layer_decay=0.65):
        for parameter in group["params"]:
            name = names[id(parameter)]
            ours = name if name.startswith("head.") else f"backbone.{name}"
            wanted[ours] = (pytest.approx(group["lr_scale"]), group["weight_decay"])
    assert found == wanted


def test_layer_groups__the_official_rule_decays_tables_and_the_clean_one_does_not() -> None:
    table = "backbone.rel_pos_bias.relative_position_bias_table"
    assert settings(small(), layer_decay=0.5)[table] == (1.0, 0.05)
    assert settings(small(), layer_decay=0.5, layer_rule="clean")[table] == (0.5**4, 0.0)
    of_block = "backbone.blocks.1.attn.relative_position_bias_table"
    assert settings(small(bias_tables="per-block"), layer_decay=0.5)[of_block] == (0.25, 0.05)
    assert settings(small(bias_tables="per-block"), layer_decay=0.5, layer_rule="clean")[of_block] == (0.25, 0.0)


def test_layer_groups__leave_out_what_does_not_learn() -> None:
    model = small()
    found = settings(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    assert "backbone.mask_token" not in found
    assert {name for name, (_, decay) in found.items() if decay} == {
        name for name, parameter in model.named_parameters() if name in trained and decays(name, parameter)
    }


def test_apply_gradients__makes_smaller_steps_near_the_pixels() -> None:
    model, config = small(), FinetuneOptimConfig(layer_decay=0.5, weight_decay=0.0)
    state = TrainingState.start(
        model, adamw(layer_groups(model, 3, config), config), PRECISIONS["fp32"], teacher_of=None
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.apply_gradients(0.1, None, torch.zeros(()))
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    assert moved["head.bias"] == pytest.approx(0.1, rel=1e-4)
    assert moved["backbone.blocks.2.mlp.fc1.bias"] == pytest.approx(0.05, rel=1e-4)
    assert moved["backbone.patch_embed.proj.bias"] == pytest.approx(0.1 / 16, rel=1e-4)
    assert moved["backbone.mask_token"] == 0


def test_optim_config__has_the_recipe_and_its_own_schedule() -> None:
    config = FinetuneOptimConfig()
    assert (config.betas, config.eps, config.clip_grad) == ((0.9, 0.999), 1e-8, None)
    per_epoch = 1_281_167 // 1024
    assert config.total_steps(per_epoch) == 125_100
    assert config.lr_at(0, per_epoch) == 0
    assert config.lr_at(20 * per_epoch, per_epoch) == 4e-3
    assert config.lr_at(125_099, per_epoch) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_decay": 0}, "layer_decay: input should be greater than 0"),
        ({"layer_decay": 1.1}, "layer_decay: input should be less than or equal to 1"),
        ({"layer_rule": "timm"}, "layer_rule: input should be 'official' or 'clean'"),
        ({"ema_decay": 1}, "ema_decay: input should be less than 1"),
        ({"leyer_decay": 0.5}, "unknown key 'leyer_decay'; did you mean 'layer_decay'"),
    ],
)
def test_optim_config__refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(FinetuneOptimConfig, values)
