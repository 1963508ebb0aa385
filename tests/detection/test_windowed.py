import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from official import Shape, index_buffer, official_state, pretrain_checkpoint, save
from torch import Tensor, nn

from mcbeit.detection.window_weights import fit_windowed, resize_plainly
from mcbeit.detection.windowed import WindowedBackbone, expand_table, join_windows, split_windows
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.relative_position import resize_table
from mcbeit.vit import ModelConfig
from mcbeit.weight_fitting import load_backbone
from mcbeit.weights import read_weights

TINY = {"dim": 32, "depth": 8, "num_heads": 2, "patch_size": 4, "drop_path": 0.0}
SHAPE = Shape(dim=32, depth=8, heads=2, patch=4, grid=4)


def make_backbone(size: int = 24, window: int = 4, **options: Any) -> WindowedBackbone:
    """A tiny backbone in double precision, all of whose parameters are random."""
    model = WindowedBackbone(ModelConfig(**{**TINY, **options}), image_size=size, window=window).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def make_images(size: int = 24, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# attention


def table_of(model: WindowedBackbone, block: int) -> Tensor | None:
    own = model.blocks[block].attn.relative_position_bias_table
    shared = model.global_rel_pos_bias if model.is_global[block] else model.windowed_rel_pos_bias
    return own if own is not None or shared is None else shared.relative_position_bias_table


def dense_bias(model: WindowedBackbone, block: int) -> Tensor:
    """[head, patch, patch]: what the definition says of each pair, -inf outside of windows."""
    (rows, columns), (height, width) = model.grid, model.extent_of(block)
    table = table_of(model, block)
    bias = torch.full((model.blocks[block].attn.num_heads, rows * columns, rows * columns), -math.inf).double()
    for query in range(rows * columns):
        for key in range(rows * columns):
            (y, x), (v, u) = divmod(query, columns), divmod(key, columns)
            if (y // height, x // width) == (v // height, u // width):
                row = (y - v + height - 1) * (2 * width - 1) + x - u + width - 1
                bias[:, query, key] = 0.0 if table is None else table[row]
    return bias


def dense_forward(model: WindowedBackbone, images: Tensor) -> list[Tensor]:
    """The whole network with full attention matrices, written out."""
    patches = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=model.patch_size)
    x = patches.flatten(2).transpose(1, 2) + model.pos_embed
    maps = []
    for i, block in enumerate(model.blocks):
        attn, normed = block.attn, F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias, eps=1e-6)
        weights = attn.qkv.weight.chunk(3)
        q, k, v = (
            (normed @ weight.T + bias).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for weight, bias in zip(weights, (attn.q_bias, 0.0, attn.v_bias), strict=True)
        )
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2) + dense_bias(model, i)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ attn.proj.weight.T + attn.proj.bias
        x = x + block.gamma_1 * mixed
        x = x + block.gamma_2 * block.mlp(F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias, eps=1e-6))
        if model.is_global[i]:
            maps.append(x.transpose(1, 2).unflatten(2, model.grid))
    return maps


@pytest.mark.parametrize("window", [3, 4, 5, 16])  # of 6 patches: two windows; padded ones; the whole grid
@pytest.mark.parametrize("tables", ["shared", "per-block", "none"])
def test_forward__is_dense_attention_that_sees_its_window_only(window: int, tables: str) -> None:
    position: dict[str, Any] = {"position": "learned"} if tables == "none" else {"bias_tables": tables}
    model = make_backbone(window=window, **position)
    maps = model(make_images())
    assert [found.shape for found in maps] == [(2, 32, 6, 6)] * 4
    for found, wanted in zip(maps, dense_forward(model, make_images()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_forward__padding_changes_nothing_of_real_patches() -> None:
    """A grid of 6 x 6 in windows of 4: an image's patches in the last windows see each other alone, in any batch."""
    model = make_backbone(window=4)
    images = make_images(batch=3)
    alone = torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(model(images)[0], alone, rtol=0, atol=1e-12)


def test_is_global__the_last_block_of_each_quarter() -> None:
    with torch.device("meta"):
        model = WindowedBackbone(ModelConfig(size="base"), image_size=1024)
    assert [i for i, is_global in enumerate(model.is_global) if is_global] == [2, 5, 8, 11]
    assert (model.extent_of(0), model.extent_of(2)) == ((16, 16), (64, 64))


def test_windowed_backbone__of_four_blocks_has_no_windows_and_no_table_for_them() -> None:
    """A parameter that nothing uses would stop DistributedDataParallel."""
    model = make_backbone(depth=4)
    assert model.windowed_rel_pos_bias is None
    for found, wanted in zip(model(make_images()), dense_forward(model, make_images()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_parameters__names_and_numbers_of_the_paper() -> None:
    with torch.device("meta"):
        shared, single = (
            WindowedBackbone(ModelConfig(size="base", bias_tables=kind), image_size=1024)
            for kind in ("shared", "per-block")
        )
    body = 85_665_360 - 768 - 2 * 768 - 732 * 12  # of pretraining, without cls token, norm and table
    assert num_parameters(shared) == body + 4096 * 768 + (961 + 16129) * 12 == 89_005_080
    assert num_parameters(single) == body + 4096 * 768 + (8 * 961 + 4 * 16129) * 12
    tables = {name: tuple(value.shape) for name, value in shared.state_dict().items() if "rel_pos" in name}
    assert tables == {
        "windowed_rel_pos_bias.relative_position_bias_table": (961, 12),
        "global_rel_pos_bias.relative_position_bias_table": (16129, 12),
    }
    assert "blocks.2.attn.relative_position_bias_table" in single.state_dict()
    assert not any("padding" in name or "index" in name for name in shared.state_dict())


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_expand_table__is_the_official_index(grid: int) -> None:
    table = torch.randn((2 * grid - 1) ** 2, 3, dtype=torch.float64)
    wanted = table[index_buffer(grid)[1:, 1:]].permute(2, 0, 1)
    assert torch.equal(expand_table(table, (grid, grid)), wanted)


def test_expand_table__of_rows_that_are_fewer_than_columns() -> None:
    bias = expand_table(torch.arange(15.0)[:, None], (2, 3))[0]
    assert bias[0].tolist() == [7, 6, 5, 2, 1, 0]  # from the first patch to those right of it, then to those below
    assert bias[5].tolist() == [14, 13, 12, 9, 8, 7]


def test_expand_table__its_gradient_counts_pairs() -> None:
    table = torch.zeros(9, 1, requires_grad=True)
    expand_table(table, (2, 2)).sum().backward()
    assert table.grad is not None
    assert table.grad.flatten().tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]


def test_expand_table__under_autocast_is_small_and_its_gradient_exact() -> None:
    table = torch.zeros(127**2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        bias = expand_table(table, (64, 64))
    assert bias.dtype == torch.bfloat16
    bias.sum().backward()
    assert table.grad is not None
    assert table.grad.max() == 4096  # bf16 would stop counting at 256


def test_split_windows__and_back() -> None:
    tokens = torch.arange(2 * 35).view(2, 35, 1).float()
    windows = split_windows(tokens, (5, 7), (2, 3))
    assert windows.shape == (2 * 3 * 3, 6, 1)
    assert windows[0, :, 0].tolist() == [0, 1, 2, 7, 8, 9]
    assert windows[8, :, 0].tolist() == [34, 0, 0, 0, 0, 0]
    assert windows[9, 0, 0] == 35
    assert torch.equal(join_windows(windows, (5, 7), (2, 3)), tokens)


# training


def test_forward__dice_leave_out_branches_of_single_images() -> None:
    model = make_backbone(drop_path=0.5).train()
    assert model.num_dice == 16
    dice = torch.rand(3, 16, generator=torch.Generator().manual_seed(3))
    together = model(make_images(batch=3), dice)
    for i, image in enumerate(make_images(batch=3)):
        for whole, alone in zip(together, model(image[None], dice[[i]]), strict=True):
            torch.testing.assert_close(whole[[i]], alone, rtol=0, atol=1e-12)
    assert not torch.allclose(together[-1], model(make_images(batch=3), 1 - dice)[-1])
    with pytest.raises(RuntimeError, match="needs dice"):
        model(make_images())


@pytest.mark.parametrize("tables", ["shared", "per-block"])
def test_forward__gradient_checkpointing_changes_nothing(tables: str) -> None:
    dice = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    gradients = []
    for grad_checkpointing in (False, True):
        model = make_backbone(bias_tables=tables, drop_path=0.2).train()
        model.grad_checkpointing = grad_checkpointing
        sum(found.square().mean() for found in model(make_images(), dice)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"depth": 6}, 24, "model.depth must be a multiple of 4, found 6"),
        ({}, 30, "image size 30 is no multiple of the patch size 4"),
    ],
)
def test_windowed_backbone__refuses_what_has_no_quarters_or_grid(options: Any, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_backbone(size, **options)


# weights


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return save(pretrain_checkpoint(official_state("pretrain", SHAPE)), tmp_path / "checkpoint-799.pth")


@pytest.fixture
def finetuned(tmp_path: Path) -> Path:
    return save({"model": official_state("finetune", SHAPE, absolute=True)}, tmp_path / "checkpoint-best.pth")


def without_cls_token(path: Path, images: Tensor) -> list[Tensor]:
    """The maps of the backbone that was trained, on patch tokens alone, by timm's blocks."""
    vit = load_backbone(path).model
    tokens = vit.patch_embed(images)
    tokens = tokens if vit.pos_embed is None else tokens + vit.pos_embed[:, 1:]
    bias, maps = None if vit.rel_pos_bias is None else vit.rel_pos_bias()[:, 1:, 1:], []
    for i, block in enumerate(vit.blocks):
        own = bias if bias is not None else block.attn._get_rel_pos_bias()[0, :, 1:, 1:]
        block.attn.relative_position_bias_table = None
        tokens = block(tokens, shared_rel_pos_bias=own)
        if i % 2:  # eight blocks are four quarters
            maps.append(tokens.transpose(1, 2).unflatten(2, vit.grid))
    return maps


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_fit_windowed__at_its_own_size_is_the_function_that_was_trained(kind: str, request: Any) -> None:
    path: Path = request.getfixturevalue(kind)
    weights = read_weights(path)
    state, _ = fit_windowed(weights, weights.model, 16, window=4)
    model = WindowedBackbone(weights.model, image_size=16, window=4).eval()
    model.load_state_dict(state)
    images = make_images(16).float()
    for found, wanted in zip(model(images), without_cls_token(path, images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_fit_windowed__pretrained_gives_the_two_shared_tables(pretrained: Path) -> None:
    weights = read_weights(pretrained)
    state, account = fit_windowed(weights, weights.model, 48, window=3)
    WindowedBackbone(weights.model, image_size=48, window=3).load_state_dict(state)
    table = weights.tensors["rel_pos_bias.relative_position_bias_table"]
    for name, grid in [("windowed_rel_pos_bias", 3), ("global_rel_pos_bias", 12)]:
        found = state[f"{name}.relative_position_bias_table"]
        assert torch.equal(found, resize_plainly(table, (4, 4), (grid, grid)))
    assert account.counts() == {"loaded": 8 * 15 + 2, "converted": 0, "resized": 1, "ignored": 11}
    assert len(account.keys) == 134  # four are the state of the optimiser and so on
    assert account.fresh == {"pos_embed": "zeros: the weights have no absolute positions"}
    assert (state["pos_embed"] == 0).all()
    assert "shared table to 25 and 529 rows, bicubic" in account.entries["rel_pos_bias.relative_position_bias_table"][1]


def test_fit_windowed__finetuned_gives_a_table_to_each_block(finetuned: Path) -> None:
    weights = read_weights(finetuned)
    state, account = fit_windowed(weights, weights.model, 48, window=8)
    WindowedBackbone(weights.model, image_size=48, window=8).load_state_dict(state)
    name = "blocks.3.attn.relative_position_bias_table"
    assert torch.equal(state[name], resize_table(weights.tensors[name], (4, 4), (12, 12))[:-3])
    assert state["pos_embed"].shape == (1, 144, 32)
    assert account.counts() == {"loaded": 8 * 15 + 2, "converted": 0, "resized": 9, "ignored": 13}
    assert account.fresh == {}


def test_fit_windowed__a_shared_table_may_be_given_to_each_block(pretrained: Path) -> None:
    """Which resizes it as in finetuning, where the official detection does it plainly."""
    weights = read_weights(pretrained)
    config = weights.model.model_copy(update={"bias_tables": "per-block"})
    state, account = fit_windowed(weights, config, 48, window=8)
    table = weights.tensors["rel_pos_bias.relative_position_bias_table"]
    windowed = WindowedBackbone(config, image_size=48, window=8)
    windowed.load_state_dict(state)
    for i in range(8):
        wanted = resize_table(table, (4, 4), windowed.extent_of(i))[:-3]
        assert torch.equal(state[f"blocks.{i}.attn.relative_position_bias_table"], wanted)
    fate, rule = account.entries["rel_pos_bias.relative_position_bias_table"]
    assert fate == "resized"
    assert rule.startswith("shared table, copied to 8 blocks; bias table on a geometric progression")


def test_fit_windowed__what_does_not_fit_is_named(finetuned: Path, pretrained: Path) -> None:
    weights = read_weights(finetuned)
    with pytest.raises(WeightsError, match="bias tables of their own, which differ"):
        fit_windowed(weights, weights.model.model_copy(update={"bias_tables": "shared"}), 16)
    wider = weights.model.model_copy(update={"mlp_ratio": 2.0})
    with pytest.raises(
        WeightsError, match=r"has other sizes: blocks\.0\.mlp\.fc1\.weight is \[128, 32\], not \[64, 32\]"
    ):
        fit_windowed(weights, wider, 16)
    shallow = weights.model.model_copy(update={"position": "learned"})
    with pytest.raises(WeightsError, match=r"it has too much: blocks\.0\.attn\.relative_position_bias_table"):
        fit_windowed(weights, shallow, 16)


def test_fit_windowed__loads_fp16_and_leaves_the_file_alone(tmp_path: Path) -> None:
    halves = {name: value.half() if value.is_floating_point() else value
              for name, value in official_state("pretrain", SHAPE).items()}  # fmt: skip
    weights = read_weights(save({"module": halves}, tmp_path / "mp_rank_00_model_states.pt"))
    state, account = fit_windowed(weights, weights.model, 16)
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert account.counts()["converted"] == 8 * 15 + 2
    state["blocks.0.gamma_1"].zero_()
    assert weights.tensors["blocks.0.gamma_1"].abs().max() > 0


def test_resize_plainly__is_the_official_bicubic() -> None:
    table = torch.randn(27**2 + 3, 2, generator=torch.Generator().manual_seed(0))
    picture = table[:-3].reshape(1, 27, 27, 2).permute(0, 3, 1, 2)
    wanted = F.interpolate(picture, size=(31, 31), mode="bicubic", align_corners=False)
    found = resize_plainly(table, (14, 14), (16, 16))
    assert torch.equal(found, wanted.permute(0, 2, 3, 1).reshape(961, 2))
    assert (found - resize_table(table, (14, 14), (16, 16))[:-3]).abs().max() > 0.1  # not the progression
    torch.testing.assert_close(resize_plainly(table, (14, 14), (14, 14)), table[:-3])
