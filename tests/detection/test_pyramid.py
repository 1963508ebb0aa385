import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcbeit.detection.pyramid import FeaturePyramid, SimplePyramid, strides
from mcbeit.errors import ConfigError
from mcbeit.group import ALONE
from mcbeit.parallel import synchronise_norms


def make_maps(dim: int = 32, side: int = 8, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, dim, side, side, generator=generator) for _ in range(4)]


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [FeaturePyramid, SimplePyramid])
def test_pyramids__give_five_levels_of_halving_size(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    levels = kind(32, channels=16)(make_maps())
    assert {name: tuple(level.shape) for name, level in levels.items()} == {
        "p2": (2, 16, 32, 32),
        "p3": (2, 16, 16, 16),
        "p4": (2, 16, 8, 8),
        "p5": (2, 16, 4, 4),
        "p6": (2, 16, 2, 2),
    }
    assert torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])


def test_strides__follow_from_the_patch() -> None:
    assert strides(16) == [4, 8, 16, 32, 64]
    assert strides(8) == [2, 4, 8, 16, 32]
    with pytest.raises(ConfigError, match="patch_size=14 is no multiple of 4"):
        strides(14)


def test_feature_pyramid__adapters_and_top_down_path_written_out() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid(32, channels=16).eval()
    maps = make_maps()
    first, norm, _, second = pyramid.ms_adaptor[0]
    up = F.conv_transpose2d(maps[0], first.weight, first.bias, stride=2)
    up = F.gelu(F.group_norm(up, 32, norm.weight, norm.bias))
    finest = F.conv_transpose2d(up, second.weight, second.bias, stride=2)
    adapter = pyramid.ms_adaptor[1]
    adapted = [finest, F.conv_transpose2d(maps[1], adapter.weight, adapter.bias, stride=2), maps[2]]
    adapted.append(F.max_pool2d(maps[3], 2))

    def normed(values: Tensor, layer: nn.Module, padding: int) -> Tensor:  # untrained running statistics: 0 and 1
        return F.conv2d(values, layer[0].weight, padding=padding) / math.sqrt(1 + 1e-5)

    above: Tensor | None = None
    wanted = {}
    for i in (3, 2, 1, 0):
        lateral = normed(adapted[i], pyramid.fpn.inner_blocks[i], 0)
        above = lateral if above is None else lateral + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
        wanted[f"p{i + 2}"] = normed(above, pyramid.fpn.layer_blocks[i], 1)
    for name, level in pyramid(maps).items():
        if name != "p6":
            torch.testing.assert_close(level, wanted[name], rtol=1e-5, atol=1e-5)


def test_feature_pyramid__starts_as_the_official_one() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid(256)
    for layer in pyramid.ms_adaptor.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(math.sqrt(1 / (256 * 4)), rel=0.02)  # lecun: 1 / fan in
            assert (layer.bias == 0).all()
    for block in (*pyramid.fpn.inner_blocks, *pyramid.fpn.layer_blocks):
        fan_in = block[0].weight[0].numel()
        assert block[0].bias is None
        assert block[0].weight.abs().max().item() == pytest.approx(math.sqrt(3 / fan_in), rel=0.01)  # Xavier of Caffe2
    with torch.device("meta"):
        transposed, laterals, outputs = 3 * (768 * 768 * 4 + 768), 4 * 768 * 256, 4 * 256 * 256 * 9
        assert num_parameters(FeaturePyramid(768)) == transposed + 2 * 768 + laterals + outputs + 8 * 2 * 256


def test_simple_pyramid__reads_the_last_map_alone() -> None:
    torch.manual_seed(0)
    pyramid, maps = SimplePyramid(32, channels=16), make_maps()
    levels, others = pyramid(maps), pyramid([torch.zeros_like(maps[0])] * 3 + maps[-1:])
    assert all(torch.equal(levels[name], others[name]) for name in levels)
    for name in ("p2", "p5"):  # the last norm is over the channels of each place
        assert levels[name].mean(dim=1).abs().max() < 1e-5
        assert (levels[name].var(dim=1, correction=0) - 1).abs().max() < 1e-3


def test_simple_pyramid__has_the_size_of_vitdets() -> None:
    with torch.device("meta"):
        pyramid = SimplePyramid(768)
    up = (768 * 384 * 4 + 384) + 2 * 384 + (384 * 192 * 4 + 192) + (768 * 384 * 4 + 384)
    mixing = sum(dim * 256 + 256 * 256 * 9 + 4 * 256 for dim in (192, 384, 768, 768))
    assert num_parameters(pyramid) == up + mixing


@pytest.mark.parametrize(
    ("kind", "dim", "message"),
    [
        (FeaturePyramid, 48, "model.dim=48 is no multiple of it"),
        (SimplePyramid, 30, "model.dim=30 is no multiple of 4"),
    ],
)
def test_pyramids__refuse_widths_that_do_not_divide(kind: Any, dim: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kind(dim)


def test_synchronise_norms__leaves_a_worker_on_its_own_alone() -> None:
    pyramid = FeaturePyramid(32, channels=8)
    assert synchronise_norms(pyramid, ALONE, torch.device("cuda")) is pyramid
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in pyramid.modules())


def test_sync_batch_norm__has_the_names_of_what_it_replaces() -> None:
    """So that a checkpoint of one worker goes on with many."""
    pyramid = FeaturePyramid(32, channels=8)
    names = list(pyramid.state_dict())
    assert list(nn.SyncBatchNorm.convert_sync_batchnorm(pyramid).state_dict()) == names
