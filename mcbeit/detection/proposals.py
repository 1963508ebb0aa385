"""Where objects may be: torchvision's region proposal network with detectron2's numbers.

What differs from torchvision: anchors are not rounded, the box loss is L1, the choice of anchors that count is a
function of the dice of an image, and boxes are computed in float32, as bf16 knows places in a large image to 4 pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from mcbeit.detection.sampling import DiceSampler

ASPECTS = (0.5, 1.0, 2.0)  # height / width


class ExactAnchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors centred on the corners of a map's cells, of exact size and always in float32.

    They are `anchor_scale` strides of their map large (detectron2: 8).
    """

    def __init__(self, strides: list[int], anchor_scale: float) -> None:
        super().__init__(tuple((anchor_scale * stride,) for stride in strides), (ASPECTS,) * len(strides))
        self.strides = strides

    def generate_anchors(
        self,
        scales: tuple[float, ...],
        aspect_ratios: tuple[float, ...],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - torchvision's signature
    ) -> Float[Tensor, "anchor 4"]:
        """Around (0, 0): left, top, right, bottom; all sizes of the first aspect, then those of the next."""
        sides = torch.tensor(scales, dtype=dtype, device=device)
        roots = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (sides / roots[:, None]).flatten(), (sides * roots[:, None]).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Float[Tensor, "anchor 4"]]:
        """The same for all images: those of the finest map first, row by row, all aspects of a cell together."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [list(found.shape[-2:]) for found in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors] * len(image_list.image_sizes)


class FullPrecisionHead(RPNHead):  # type: ignore[misc]  # the same
    """The two 3x3 convolutions and two outputs, which leave autocast here."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and box deltas of each map."""
        logits, deltas = super().forward(maps)
        return [values.float() for values in logits], [values.float() for values in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # the same
    """See the module."""

    def __init__(
        self,
        channels: int,
        strides: list[int],
        *,
        anchor_scale: float,
        num_before: tuple[int, int],  # proposals kept before non-maximum suppression, per map: in training and after
        num_after: tuple[int, int],
        num_samples: int,
    ) -> None:
        names = ("training", "testing")
        super().__init__(
            ExactAnchors(strides, anchor_scale),
            FullPrecisionHead(channels, len(ASPECTS), conv_depth=2),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=num_samples,
            positive_fraction=0.5,
            pre_nms_top_n=dict(zip(names, num_before, strict=True)),
            post_nms_top_n=dict(zip(names, num_after, strict=True)),
            nms_thresh=0.7,
        )
        self.fg_bg_sampler = DiceSampler(num_samples, 0.5)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: Sequence[Tensor]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Cross-entropy of objectness, and L1 of the boxes of positive anchors, both per sampled anchor."""
        positive, negative = (torch.cat(chosen).nonzero()[:, 0] for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([positive, negative])
        wanted, targets = torch.cat(labels), torch.cat(tuple(regression_targets))
        box_loss = F.l1_loss(pred_bbox_deltas[positive], targets[positive], reduction="sum") / len(sampled)
        return F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], wanted[sampled]), box_loss
