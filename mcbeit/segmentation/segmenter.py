"""The backbone with a pyramid and UperNet's heads: what segmentation trains.

BEiT's way (Bao et al., 2022): the patch tokens after four blocks, without a final norm, are brought to four resolutions
by transposed convolutions and pooling, the earliest block to the finest.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.errors import ConfigError
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.upernet import FCNHead, Map, Scores, UperHead, resized
from mcbeit.vit import VisionTransformer

AUXILIARY_MAP = 2  # the one at the stride of the patches
PUBLISHED_TAPS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
NUM_MAPS = 4


class HeadConfig(Config):
    """UperNet on the backbone."""

    # blocks whose outputs are used, counted from 0, ascending; default: 3, 5, 7, 11 of 12, 7, 11, 15, 23 of 24
    taps: tuple[int, int, int, int] | None = None
    channels: int | None = Field(None, ge=1)  # default: the backbone's width
    auxiliary_channels: int = Field(256, ge=1)
    auxiliary_weight: float = Field(0.4, ge=0)


def default_taps(depth: int) -> tuple[int, ...]:
    """The blocks, counted from 0, whose outputs are used: as published for ViT-B and ViT-L, else the ends of quarters.

    Raises ConfigError for fewer blocks than maps.
    """
    if depth < NUM_MAPS:
        raise ConfigError(f"the pyramid takes the outputs of {NUM_MAPS} blocks, but the model has {depth}")
    return PUBLISHED_TAPS.get(depth) or tuple(depth * (i + 1) // NUM_MAPS - 1 for i in range(NUM_MAPS))


class Pyramid(nn.Module):
    """Four maps of one resolution to 4, 2, 1 and 1/2 times as many places per side."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, 2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(dim, dim, 2, stride=2))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(2)

    def forward(self, maps: Sequence[Map]) -> list[Map]:
        """See the class."""
        return [part(one) for part, one in zip((self.fpn1, self.fpn2, self.fpn3, self.fpn4), maps, strict=True)]


class Segmenter(nn.Module):
    """Class scores for every pixel of square images of one size."""

    def __init__(
        self,
        backbone: VisionTransformer,
        num_classes: int,
        *,
        taps: Sequence[int],
        channels: int,
        auxiliary_channels: int,
        auxiliary_weight: float,
    ) -> None:
        super().__init__()
        dim = backbone.embed_dim
        self.backbone, self.taps, self.num_classes = backbone, tuple(taps), num_classes
        self.auxiliary_weight = auxiliary_weight
        self.pyramid = Pyramid(dim)
        self.decode_head = UperHead([dim] * NUM_MAPS, channels, num_classes)
        self.auxiliary_head = FCNHead(dim, auxiliary_channels, num_classes)
        for unused in (backbone.mask_token, *backbone.norm.parameters(), *backbone.fc_norm.parameters()):
            unused.requires_grad_(False)

    @property
    def num_dice(self) -> int:
        """Dice per image in training: those of drop path, and one for each channel that a head may leave out."""
        return sum(self._dice_sizes)

    @property
    def _heads(self) -> tuple[UperHead, FCNHead]:
        return self.decode_head, self.auxiliary_head

    def maps(
        self, images: Float[Tensor, "batch channel height width"], dice: Float[Tensor, "batch die"] | None = None
    ) -> list[Map]:
        """The four maps of the pyramid, from fine to coarse."""
        return self.pyramid(self.backbone.forward_maps(images, self.taps, dice=dice))

    def forward(
        self, images: Float[Tensor, "batch channel height width"], dice: Float[Tensor, "batch die"] | None = None
    ) -> tuple[Scores, Scores]:
        """Scores of both heads in float32, each at the size of its map; `dice` are needed in training."""
        branches, *channels = (None,) * 3 if dice is None else dice.split(self._dice_sizes, dim=1)
        for head, found in zip(self._heads, channels, strict=True):
            head.dropout.dice = found
        maps = self.maps(images, branches)
        return self.decode_head(maps).float(), self.auxiliary_head(maps[AUXILIARY_MAP]).float()

    @property
    def _dice_sizes(self) -> list[int]:
        return [self.backbone.num_dice, *(head.conv_seg.in_channels for head in self._heads)]

    def score(self, images: Float[Tensor, "batch channel height width"]) -> Scores:
        """The class scores of every pixel, in float32."""
        return resized(self.decode_head(self.maps(images)).float(), images.shape[-2:])

    def loss(self, scores: tuple[Scores, Scores], labels: Int64[Tensor, "batch height width"]) -> Float[Tensor, ""]:
        """The cross-entropy of both heads at the size of the labels, in nats."""
        main, auxiliary = (pixel_loss(one, labels) for one in scores)
        return main + self.auxiliary_weight * auxiliary


def pixel_loss(scores: Scores, labels: Int64[Tensor, "batch height width"]) -> Float[Tensor, ""]:
    """The sum of the cross-entropy over labelled pixels, divided by the number of all pixels: as in the published runs.

    Pixels without a label thus make a batch count less.
    """
    scores = resized(scores, labels.shape[-2:])
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none").mean()
