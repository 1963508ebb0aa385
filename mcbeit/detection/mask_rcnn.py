"""Mask R-CNN (He et al., 2017) on a BEiT backbone: the losses of a step, and what it finds in images."""

from typing import Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from mcbeit.augment import normalise
from mcbeit.config import Config
from mcbeit.detection.detections import Detections
from mcbeit.detection.proposals import ProposalNetwork
from mcbeit.detection.pyramid import FeaturePyramid, SimplePyramid, strides
from mcbeit.detection.regions import RegionHeads, Targets
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.errors import ConfigError
from mcbeit.preprocess import Preprocess

PYRAMIDS = {"fpn": FeaturePyramid, "simple": SimplePyramid}


class DetectorConfig(Config):
    """What comes after the backbone; the defaults are those of the paper's protocol."""

    pyramid: Literal["fpn", "simple"] = "fpn"  # simple: ViTDet's
    channels: int = Field(256, ge=1)  # of the pyramid and of the convolutions of all heads
    head_dim: int = Field(1024, ge=1)  # of the fully connected layer that classes and boxes are read from
    anchor_scale: float = Field(8.0, gt=0)  # side of a square anchor in strides of its map: 32 to 512 px, patch size 16
    anchor_samples: int = Field(256, ge=2)  # anchors per image that count in a training step
    region_samples: int = Field(512, ge=4)  # proposals per image that count
    # proposals kept before non-maximum suppression, per map, and after it: in training, and otherwise
    proposals_before: tuple[int, int] = (2000, 1000)
    proposals_after: tuple[int, int] = (1000, 1000)
    score_threshold: float = Field(0.05, ge=0, lt=1)  # of what is a detection
    num_detections: int = Field(100, ge=1)  # per image, at most; COCO counts 100


class MaskRCNN(nn.Module):
    """Called with images and targets it gives the losses of a step; `detect` gives what is in images.

    Images are squares of the backbone's size, uint8; smaller ones have been padded. Targets of an image are `boxes`
    (left, top, right, bottom in pixels, each of positive size), `labels` from 0 and `masks` (uint8, 0 or 1).
    """

    def __init__(
        self,
        backbone: WindowedBackbone,
        num_classes: int,
        config: DetectorConfig | None = None,
        *,
        preprocess: Preprocess | None = None,  # its mean and std count
    ) -> None:
        super().__init__()
        config = config or DetectorConfig()
        steps = strides(backbone.patch_size)
        if min(backbone.grid) < 2:
            raise ConfigError(
                f"the coarsest map has a cell for 2 x 2 patches, but an image has {backbone.grid[0]} x "
                f"{backbone.grid[1]} of {backbone.patch_size} pixels; raise preprocess.image_size"
            )
        self.backbone, self.preprocess, self.num_classes = backbone, preprocess or Preprocess(), num_classes
        self.image_size = backbone.grid[0] * backbone.patch_size
        self.pyramid = PYRAMIDS[config.pyramid](backbone.dim, config.channels)
        self.rpn = ProposalNetwork(
            config.channels,
            steps,
            anchor_scale=config.anchor_scale,
            num_before=config.proposals_before,
            num_after=config.proposals_after,
            num_samples=config.anchor_samples,
        )
        self.roi_heads = RegionHeads(
            config.channels,
            steps,
            backbone.patch_size,
            num_classes,
            head_dim=config.head_dim,
            num_samples=config.region_samples,
            score_threshold=config.score_threshold,
            num_detections=config.num_detections,
        )

    @property
    def num_dice(self) -> int:
        """Dice per image in training: those of drop path, and one each for the choice of anchors and of proposals."""
        return self.backbone.num_dice + 2

    def forward(
        self,
        images: UInt8[Tensor, "batch channel size size"],
        targets: Targets,
        dice: Float[Tensor, "batch die"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts of the loss, in training mode: objectness and box of proposals; class, box and mask of regions."""
        branches, anchors, regions = (None,) * 3 if dice is None else (dice[:, :-2], dice[:, -2], dice[:, -1])
        self.rpn.fg_bg_sampler.throw(anchors)
        self.roi_heads.fg_bg_sampler.throw(regions)
        maps = self.pyramid(self.backbone(self._normalised(images), branches))
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]  # torchvision's 0: background
        proposals, losses = self.rpn(self._listed(images), maps, shifted)
        _, of_regions = self.roi_heads(maps, proposals, self._sizes(images), shifted)
        return {
            "objectness": losses["loss_objectness"],
            "proposal_box": losses["loss_rpn_box_reg"],
            **of_regions,
        }

    @torch.no_grad()
    def detect(self, images: UInt8[Tensor, "batch channel size size"]) -> list[Detections]:
        """What is in each image, in its own pixels, padding included; in evaluation mode. See `Detections.in_image`."""
        maps = self.pyramid(self.backbone(self._normalised(images)))
        proposals, _ = self.rpn(self._listed(images), maps)
        found, _ = self.roi_heads(maps, proposals, self._sizes(images))
        return [Detections(one["boxes"], one["scores"], one["labels"] - 1, one["masks"][:, 0]) for one in found]

    def _normalised(self, images: Tensor) -> Tensor:
        return normalise(images, self.preprocess.mean, self.preprocess.std)

    def _sizes(self, images: Tensor) -> list[tuple[int, int]]:
        return [(self.image_size, self.image_size)] * len(images)

    def _listed(self, images: Tensor) -> ImageList:
        return ImageList(images, self._sizes(images))
