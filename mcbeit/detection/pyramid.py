"""From the maps of a backbone, all of one size, to a pyramid of maps p2 to p6 of strides patch / 4 to 4 * patch."""

import torch
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from timm.layers.weight_init import lecun_normal_
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mcbeit.errors import ConfigError

NUM_GROUPS = 32  # of the adapters' GroupNorm
LEVELS = ("p2", "p3", "p4", "p5")  # that objects are read from; proposals also come from p6
Maps = dict[str, Float[Tensor, "batch channel _rows _columns"]]


def strides(patch_size: int) -> list[int]:
    """Pixels per row of p2 to p6. Raises ConfigError unless the patch size is a multiple of 4."""
    if patch_size % 4:
        raise ConfigError(f"the finest map has four rows per patch: model.patch_size={patch_size} is no multiple of 4")
    return [patch_size * factor // 4 for factor in (1, 2, 4, 8, 16)]


class FeaturePyramid(nn.Module):
    """The paper's: an adapter for each of the four maps, then a feature pyramid network (Lin et al., 2017) with norms.

    The norms are BatchNorm2d, which `synchronise_norms` makes one over all workers. `ms_adaptor` is the official name.
    """

    def __init__(self, dim: int, channels: int = 256) -> None:
        super().__init__()
        if dim % NUM_GROUPS:
            raise ConfigError(
                f"the adapters norm {NUM_GROUPS} groups of channels: model.dim={dim} is no multiple of it"
            )
        self.ms_adaptor = nn.ModuleList([_up_twice(dim), _up(dim), nn.Identity(), nn.MaxPool2d(2)])
        self.fpn = FeaturePyramidNetwork([dim] * 4, channels, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d)
        for layer in self.ms_adaptor.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                lecun_normal_(layer.weight)  # type: ignore[no-untyped-call]  # timm's
                layer.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, maps: list[Float[Tensor, "batch dim row column"]]) -> Maps:
        """p2 to p6."""
        adapted = [adapter(found) for adapter, found in zip(self.ms_adaptor, maps, strict=True)]
        levels = self.fpn(dict(zip(LEVELS, adapted, strict=True)))
        return {**{name: levels[name] for name in LEVELS}, "p6": levels["pool"]}


class SimplePyramid(nn.Module):
    """ViTDet's (Li et al., 2022): every level is made of the last map alone, and normed over its channels."""

    def __init__(self, dim: int, channels: int = 256) -> None:
        super().__init__()
        if dim % 4:
            raise ConfigError(f"the finest map has a quarter of the channels: model.dim={dim} is no multiple of 4")
        finest = [_up(dim, dim // 2), LayerNorm2d(dim // 2), nn.GELU(), _up(dim // 2, dim // 4)]
        self.levels = nn.ModuleList(
            [
                nn.Sequential(*finest, *_mixed(dim // 4, channels)),
                nn.Sequential(_up(dim, dim // 2), *_mixed(dim // 2, channels)),
                nn.Sequential(*_mixed(dim, channels)),
                nn.Sequential(nn.MaxPool2d(2), *_mixed(dim, channels)),
            ]
        )

    def forward(self, maps: list[Float[Tensor, "batch dim row column"]]) -> Maps:
        """p2 to p6."""
        levels = {name: level(maps[-1]) for name, level in zip(LEVELS, self.levels, strict=True)}
        return {**levels, "p6": levels["p5"][:, :, ::2, ::2]}


def _up(dim: int, out: int | None = None) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, out or dim, kernel_size=2, stride=2)


def _up_twice(dim: int) -> nn.Sequential:
    return nn.Sequential(_up(dim), nn.GroupNorm(NUM_GROUPS, dim), nn.GELU(), _up(dim))


def _mixed(dim: int, channels: int) -> list[nn.Module]:
    one = nn.Conv2d(dim, channels, kernel_size=1, bias=False)
    three = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
    for layer in (one, three):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return [one, LayerNorm2d(channels), three, LayerNorm2d(channels)]
