import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcbeit.config import validate
from mcbeit.errors import ConfigError
from mcbeit.masked import MaskedImageModel, ObjectiveConfig
from mcbeit.relative_position import num_table_rows, resize_table
from mcbeit.vit import ModelConfig, VisionTransformer, sincos_positions

TINY = {"dim": 32, "depth": 3, "num_heads": 2, "patch_size": 4, "drop_path": 0.0}


def make_vit(image_size: int = 16, *, trained: bool = False, **options: Any) -> VisionTransformer:
    """A tiny backbone in evaluation mode; `trained`: with biases and scales that are not zero or constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(ModelConfig(**{**TINY, **options}), image_size=image_size).eval()
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_images(size: int = 16, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def on_meta(**options: Any) -> VisionTransformer:
    """A backbone of full size without its memory."""
    with torch.device("meta"):
        return VisionTransformer(ModelConfig(**options), image_size=224)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# sizes and names


@pytest.mark.parametrize(
    ("size", "encoder", "pretrain"),
    [("small", 21_599_016, 24_753_320), ("base", 85_665_360, 91_965_776), ("large", 303_136_192, 311_534_016)],
)
def test_vision_transformer__has_the_published_number_of_parameters(size: Any, encoder: int, pretrain: int) -> None:
    backbone = on_meta(size=size)
    assert num_parameters(backbone) - backbone.mask_token.numel() == encoder
    with torch.device("meta"):
        assert num_parameters(MaskedImageModel(backbone, 8192, ObjectiveConfig())) == pretrain


def official_shapes(dim: int = 768, depth: int = 12, heads: int = 12) -> dict[str, tuple[int, ...]]:
    """The backbone of an official pretraining checkpoint, without the index buffer and `lm_head`."""
    vectors = [f"{layer}.{part}" for layer in ("norm1", "norm2") for part in ("weight", "bias")]
    vectors += ["gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc2.bias"]
    block = {
        **dict.fromkeys(vectors, (dim,)),
        "attn.qkv.weight": (3 * dim, dim),
        "attn.proj.weight": (dim, dim),
        "mlp.fc1.weight": (4 * dim, dim),
        "mlp.fc1.bias": (4 * dim,),
        "mlp.fc2.weight": (dim, 4 * dim),
    }
    return {
        **dict.fromkeys(("cls_token", "mask_token"), (1, 1, dim)),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "rel_pos_bias.relative_position_bias_table": (732, heads),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()},
        **dict.fromkeys(("patch_embed.proj.bias", "norm.weight", "norm.bias"), (dim,)),
    }


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_vision_transformer__has_the_names_and_shapes_of_official_checkpoints() -> None:
    assert shapes(on_meta()) == official_shapes()
    assert shapes(on_meta(position="relative+learned")) == {**official_shapes(), "pos_embed": (1, 197, 768)}
    without_scale = {name: shape for name, shape in official_shapes().items() if "gamma" not in name}
    assert shapes(on_meta(layer_scale=0.0)) == without_scale


def test_model_config__sizes_and_what_overrides_them() -> None:
    assert ModelConfig().shape == (768, 12, 12)
    assert ModelConfig(size="tiny", depth=2).shape == (192, 2, 3)
    model = make_vit(24, depth=4, drop_path=0.3)
    assert (model.embed_dim, len(model.blocks), model.grid) == (32, 4, (6, 6))
    rates = [getattr(block.drop_path1, "rate", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 7}, "model.dim (768) must be a multiple of model.num_heads (7)"),
        ({"size": "small", "dim": 100}, "model.dim (100) must be a multiple of model.num_heads (6)"),
        ({"size": "huge"}, "size: input should be 'tiny', 'small', 'base' or 'large'"),
        ({"drop_path": 1.0}, "drop_path: input should be less than 1"),
        ({"layer_scale": -1}, "layer_scale: input should be greater than or equal to 0"),
        ({"position": "absolute"}, "position: input should be 'relative', 'relative+sincos' or 'relative+learned'"),
    ],
)
def test_model_config__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(ModelConfig, values)


# initialise


def test_initialise__is_that_of_the_official_pretraining() -> None:
    model = make_vit(dim=96, depth=12, patch_size=8, layer_scale=0.1)
    for name, weight in model.named_parameters():
        block = int(name.split(".")[1]) if name.startswith("blocks.") else 0
        if name.endswith(("gamma_1", "gamma_2")):
            assert (weight == 0.1).all(), name
        elif name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            assert (weight == 1).all(), name
        elif name.endswith(("bias", "bias_table")):
            assert (weight == 0).all(), name
        else:
            scale = math.sqrt(2 * (block + 1)) if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else 1.0
            assert 0 < weight.abs().max() <= 0.02 / scale * (1 + 1e-6), name
            if weight.numel() > 9000:
                assert weight.std().item() == pytest.approx(0.0108 / scale, rel=0.03), name
    assert model.blocks[0].attn.proj.weight.std().item() == pytest.approx(0.00764, rel=0.02)
    assert model.blocks[11].attn.proj.weight.std().item() == pytest.approx(0.00220, rel=0.02)


def test_initialise__by_xavier_draws_every_matrix_by_its_fan() -> None:
    model = make_vit(init="xavier", dim=96)
    for weight in [model.patch_embed.proj.weight, *(m.weight for m in model.modules() if isinstance(m, nn.Linear))]:
        bound = math.sqrt(6 / (len(weight) + weight[0].numel()))
        assert 0.98 * bound < weight.abs().max() <= bound
    assert (model.blocks[2].mlp.fc2.bias == 0).all()
    assert 0 < model.mask_token.abs().max() <= 0.02


# positions


def test_sincos_positions__rows_in_the_first_half_columns_in_the_second() -> None:
    table = sincos_positions((3, 5), 16).view(3, 5, 2, 8)
    assert (table[:, :, 0] == table[:, :1, 0]).all()
    assert (table[:, :, 1] == table[:1, :, 1]).all()
    frequencies = [1, 0.1, 0.01, 0.001]  # 10000 ** (-i / 4)
    for axis in (0, 1):
        wanted = [math.sin(2 * f) for f in frequencies] + [math.cos(2 * f) for f in frequencies]
        torch.testing.assert_close(table[2, 2, axis], torch.tensor(wanted))


def test_sincos_positions__fill_what_four_does_not_divide_with_zeros() -> None:
    table = sincos_positions((2, 2), 10)
    assert (table[:, :8] == sincos_positions((2, 2), 8)).all()
    assert (table[:, 8:] == 0).all()


def test_vision_transformer__starts_from_half_the_sincos_positions_and_none_for_cls() -> None:
    positions = make_vit(position="relative+sincos").pos_embed
    assert positions is not None
    assert (positions[0, 0] == 0).all()
    assert (positions[0, 1:] == 0.5 * sincos_positions((4, 4), 32)).all()


# forward_tokens


@pytest.mark.parametrize("options", [{}, {"position": "relative+learned"}, {"layer_scale": 0.0}])
def test_forward_tokens__without_a_mask_is_the_forward_of_timm(options: dict[str, Any]) -> None:
    model = make_vit(trained=True, **options)
    tokens = model.forward_tokens(make_images())
    assert tokens.shape == (2, 17, 32)
    assert (tokens == model.forward_features(make_images())).all()
    assert (tokens == model.forward_tokens(make_images(), torch.zeros(2, 16, dtype=torch.bool))).all()


def test_forward_tokens__does_not_see_masked_pixels() -> None:
    model, images = make_vit(trained=True), make_images()
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, [5, 6]] = True  # second row of patches, second and third column
    tokens = model.forward_tokens(images, mask)
    hidden, seen = images.clone(), images.clone()
    hidden[0, :, 4:8, 4:12] = 9.0
    seen[0, :, 4:8, 3] = 9.0  # one pixel further left: patch 4
    assert (model.forward_tokens(hidden, mask) == tokens).all()
    differs = (model.forward_tokens(seen, mask) != tokens).any(dim=-1)
    assert differs[0].all()
    assert not differs[1].any()


def test_forward_tokens__puts_the_mask_token_before_positions() -> None:
    model, everywhere = make_vit(position="relative+sincos"), torch.ones(2, 16, dtype=torch.bool)
    tokens = model.forward_tokens(make_images(), everywhere)
    assert (tokens[0] == tokens[1]).all()  # nothing is left of the images
    assert not torch.allclose(tokens[0, 1], tokens[0, 2])  # but places differ
    with torch.no_grad():
        model.mask_token.add_(torch.linspace(-1, 1, 32))
    assert not torch.allclose(model.forward_tokens(make_images(), everywhere), tokens)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_forward_tokens__checkpointing_keeps_the_gradients_and_saves_memory(drop_path: float) -> None:
    model = make_vit(trained=True, drop_path=drop_path).train()
    gradients, saved = [], []
    for enable in (False, True):
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.set_grad_checkpointing(enable)
        images, generator = make_images(), torch.Generator().manual_seed(0)
        dice = torch.rand(len(images), model.num_dice, generator=generator)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.forward_tokens(images, dice=dice)[:, 1:].square().sum(dim=1).sqrt().sum()
            saved.append(kept)
            gradients.append(torch.autograd.grad(loss, [p for p in model.parameters() if p is not model.mask_token]))
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert saved[1] < saved[0] / 4


# set_input_size


@pytest.mark.parametrize("position", ["relative", "relative+sincos", "relative+learned"])
def test_set_input_size__resizes_the_table_by_the_exact_rule(position: Any) -> None:
    model = make_vit(16, trained=True, position=position)
    table = model.rel_pos_bias.relative_position_bias_table.detach().clone()
    model.set_input_size(24)
    assert model.grid == (6, 6)
    assert len(model.rel_pos_bias.relative_position_bias_table) == num_table_rows((6, 6))
    assert (model.rel_pos_bias.relative_position_bias_table == resize_table(table, (4, 4), (6, 6))).all()
    fresh = make_vit(24, position=position)
    fresh.load_state_dict(model.state_dict())  # nothing but the weights has changed
    assert (fresh.forward_tokens(make_images(24)) == model.forward_tokens(make_images(24))).all()


def test_set_input_size__to_the_same_size_keeps_the_function() -> None:
    model = make_vit(trained=True, position="relative+learned")
    tokens = model.forward_tokens(make_images())
    model.set_input_size(16)
    assert (model.forward_tokens(make_images()) == tokens).all()


def test_set_input_size__to_a_rectangle() -> None:
    model = make_vit(trained=True, position="relative+sincos")
    model.set_input_size((24, 12))
    assert model.grid == (6, 3)
    assert model.forward_tokens(make_images(24)[..., :12]).shape == (2, 19, 32)


@pytest.mark.parametrize("learns", [False, True])
def test_set_input_size__leaves_frozen_what_is_frozen(learns: bool) -> None:
    model = make_vit(position="relative+learned").requires_grad_(learns)
    model.set_input_size(24)
    assert {parameter.requires_grad for parameter in model.parameters()} == {learns}
    assert all(parameter.is_leaf for parameter in model.parameters())


def test_set_input_size__refuses_another_patch_size() -> None:
    with pytest.raises(ValueError, match="the patch size of a trained backbone is fixed"):
        make_vit().set_input_size(16, patch_size=8)
