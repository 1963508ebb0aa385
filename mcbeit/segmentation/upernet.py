"""UperNet's heads on four maps of features (Xiao et al., 2018), with the layers and names of the published checkpoints.

`decode_head` fuses pooled context with a top-down pyramid; `auxiliary_head` is a small FCN on the third map, which only
helps learning. Scores come at the size of the map; convolutions before a norm have no bias.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch _ _ _"]  # batch, channel, height, width
Scores = Float[Tensor, "batch class _ _"]
POOL_SIZES = (1, 2, 3, 6)
DROPOUT = 0.1  # of whole channels, before the scores


class NormedConv(nn.Module):
    """Convolution, batch norm, ReLU; the map keeps its size."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Map) -> Map:
        return F.relu(self.bn(self.conv(features)))


class ChannelDropout(nn.Module):
    """Leaves whole channels out in training, and scales the others up. `dice`, in [0, 1), decide which."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dice: Float[Tensor, "batch channel"] | None = None

    def forward(self, features: Map) -> Map:
        if not self.training:
            return features
        if self.dice is None:
            raise RuntimeError("dropout needs dice in training; give them to Segmenter.forward")
        kept = (self.dice >= self.rate).to(features.dtype) / (1 - self.rate)
        return features * kept[:, :, None, None]


class Scorer(nn.Module):
    """The last layer of a head."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.dropout = ChannelDropout(DROPOUT)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        assert self.conv_seg.bias is not None
        nn.init.zeros_(self.conv_seg.bias)

    def score(self, features: Map) -> Scores:
        """Class scores of a map, before any softmax."""
        return self.conv_seg(self.dropout(features))


class UperHead(Scorer):
    """Scores at the size of the finest of the maps, which come in the order from fine to coarse."""

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes)
        last = in_channels[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), NormedConv(last, channels, 1)) for size in POOL_SIZES
        )
        self.bottleneck = NormedConv(last + len(POOL_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(NormedConv(width, channels, 1) for width in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(NormedConv(channels, channels, 3) for _ in in_channels[:-1])
        self.fpn_bottleneck = NormedConv(len(in_channels) * channels, channels, 3)

    def forward(self, maps: Sequence[Map]) -> Scores:
        """See the class."""
        laterals = [conv(features) for conv, features in zip(self.lateral_convs, maps[:-1], strict=True)]
        laterals.append(self._pooled(maps[-1]))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resized(laterals[i], laterals[i - 1].shape[-2:])
        fused = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        fused.append(laterals[-1])
        finest = fused[0].shape[-2:]
        return self.score(self.fpn_bottleneck(torch.cat([resized(features, finest) for features in fused], dim=1)))

    def _pooled(self, features: Map) -> Map:
        """The coarsest map beside what it looks like pooled to a few places."""
        pooled = [resized(module(features), features.shape[-2:]) for module in self.psp_modules]
        return self.bottleneck(torch.cat([features, *pooled], dim=1))


class FCNHead(Scorer):
    """One convolution and the scores."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(channels, num_classes)
        self.convs = nn.Sequential(NormedConv(in_channels, channels, 3))

    def forward(self, features: Map) -> Scores:
        """Scores at the size of the map."""
        return self.score(self.convs(features))


def resized(features: Map, size: Sequence[int]) -> Map:
    """Bilinear, corners not aligned."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)
