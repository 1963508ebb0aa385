"""What lies in a region: class, box and mask, by torchvision's heads with detectron2's numbers.

What differs from torchvision: regions are read by RoIAlign with half-pixel centres and as many samples as the region
has cells (`aligned`, sampling ratio 0), the box loss is L1, mask targets are read the same way and thresholded without
ever having all masks as floats, the choice of proposals that count is a function of the dice of an image, and the heads
start as detectron2's do.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from mcbeit.detection.pyramid import LEVELS, Maps
from mcbeit.detection.sampling import DiceSampler

BOX_SIDE, MASK_SIDE = 7, 14  # cells that a region is read in, by each head; the mask has twice as many
MIDDLE_LEVEL = 4  # p4, of which a cell is a patch
MIDDLE_PATCHES = 14  # a region of 14 x 14 patches is read from p4: 224 pixels, the size of pretraining
POSITIVE = 0.25  # of the regions that count in training, at most
CHUNK_BYTES = 64 * 2**20  # of masks that are floats at the same time
Boxes = Float[Tensor, "_box 4"]  # left, top, right, bottom in pixels
Targets = list[dict[str, Tensor]]


class RegionPooler(nn.Module):
    """Reads each region from the level that suits its size (equation 1 of Lin et al., 2017)."""

    def __init__(self, side: int, strides: list[int], patch_size: int) -> None:
        super().__init__()
        self.side, self.strides = side, strides[: len(LEVELS)]
        self.level_of = LevelMapper(2, 5, canonical_scale=MIDDLE_PATCHES * patch_size, canonical_level=MIDDLE_LEVEL)

    def forward(self, maps: Maps, boxes: list[Boxes]) -> Float[Tensor, "region channel side side"]:
        """The regions of all images, one image after the other."""
        regions = with_image(boxes)
        levels = self.level_of(boxes)
        parts, places = [], []
        for i, (name, stride) in enumerate(zip(LEVELS, self.strides, strict=True)):
            found = (levels == i).nonzero()[:, 0]
            features = maps[name].to(regions.dtype)
            parts.append(roi_align(features, regions[found], self.side, 1 / stride, sampling_ratio=0, aligned=True))
            places.append(found)
        return torch.cat(parts)[torch.cat(places).argsort()]


def with_image(boxes: list[Boxes]) -> Float[Tensor, "region 5"]:
    """All boxes, each after the number of its image."""
    return torch.cat([F.pad(found, (1, 0), value=float(i)) for i, found in enumerate(boxes)])


def mask_targets(
    masks: UInt8[Tensor, "instance height width"],
    boxes: Boxes,
    instances: Int64[Tensor, " _box"],
    side: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, "_box side side"]:
    """What a mask head should say of each box: the mask of its instance in it, 0 or 1.

    At 1024 pixels a mask is 1 MB, as floats 4 MB, and an image has up to a hundred: they become floats `chunk_bytes` at
    a time, which changes no number.
    """
    targets = boxes.new_zeros(len(boxes), side, side)
    size = max(1, chunk_bytes // (4 * masks.shape[1] * masks.shape[2]))
    for start in range(0, len(masks), size):
        here = ((instances >= start) & (instances < start + size)).nonzero()[:, 0]
        if len(here):
            regions = torch.cat([(instances[here] - start).to(boxes)[:, None], boxes[here]], dim=1)
            chunk = masks[start : start + size, None].to(boxes.dtype)
            targets[here] = (roi_align(chunk, regions, side, aligned=True)[:, 0] >= 0.5).to(boxes.dtype)
    return targets


class RegionHeads(RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """See the module. Labels are torchvision's: 0 is the background."""

    def __init__(
        self,
        channels: int,
        strides: list[int],
        patch_size: int,
        num_classes: int,
        *,
        head_dim: int,
        num_samples: int,
        score_threshold: float,
        num_detections: int,
    ) -> None:
        box_head = FastRCNNConvFCHead((channels, BOX_SIDE, BOX_SIDE), [channels] * 4, [head_dim], nn.BatchNorm2d)
        super().__init__(
            RegionPooler(BOX_SIDE, strides, patch_size),
            box_head,
            FastRCNNPredictor(head_dim, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=num_samples,
            positive_fraction=POSITIVE,
            bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
            score_thresh=score_threshold,
            nms_thresh=0.5,
            detections_per_img=num_detections,
            mask_roi_pool=RegionPooler(MASK_SIDE, strides, patch_size),
            mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, nn.BatchNorm2d),
            mask_predictor=MaskRCNNPredictor(channels, channels, num_classes + 1),
        )
        self.fg_bg_sampler = DiceSampler(num_samples, POSITIVE)
        self._initialise()

    def forward(
        self,
        features: Maps,
        proposals: list[Boxes],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, or with targets the losses."""
        if targets is not None:
            return [], self.losses(features, proposals, targets)
        logits, deltas = self._classify(features, proposals)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = maskrcnn_inference(self._outline(features, boxes), labels)
        names = ("boxes", "scores", "labels", "masks")
        return [dict(zip(names, found, strict=True)) for found in zip(boxes, scores, labels, masks, strict=True)], {}

    def losses(self, features: Maps, proposals: list[Boxes], targets: Targets) -> dict[str, Float[Tensor, ""]]:
        """Of classes and boxes, per sampled proposal, and of masks, per positive one."""
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        logits, found = self._classify(features, proposals)
        losses = dict(zip(("class", "box"), class_and_box_loss(logits, found, labels, deltas), strict=True))
        positive = [(chosen > 0).nonzero()[:, 0] for chosen in labels]
        boxes = [proposed[chosen] for proposed, chosen in zip(proposals, positive, strict=True)]
        masks = self._outline(features, boxes)
        side = masks.shape[-1]
        wanted = [
            mask_targets(target["masks"], box, instances[chosen], side)
            for target, box, instances, chosen in zip(targets, boxes, matched, positive, strict=True)
        ]
        classes = torch.cat([chosen[places] for chosen, places in zip(labels, positive, strict=True)])
        return {**losses, "mask": mask_loss(masks, torch.cat(wanted), classes)}

    def _classify(self, features: Maps, boxes: list[Boxes]) -> tuple[Tensor, Tensor]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes)))
        return logits.float(), deltas.float()

    def _outline(self, features: Maps, boxes: list[Boxes]) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes))).float()

    def _initialise(self) -> None:
        for layer in self.box_head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)
        last = {self.box_predictor.cls_score: 0.01, self.box_predictor.bbox_pred: 0.001}
        for layer, std in {**last, self.mask_predictor.mask_fcn_logits: 0.001}.items():
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.mask_predictor.conv5_mask.bias)


def class_and_box_loss(
    logits: Float[Tensor, "region label"],
    deltas: Float[Tensor, "region label_times_4"],
    labels: list[Int64[Tensor, " _region"]],
    targets: Sequence[Float[Tensor, "_region 4"]],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of the classes, and L1 of the boxes of positive regions, both per region."""
    wanted, boxes = torch.cat(labels), torch.cat(tuple(targets))
    positive = (wanted > 0).nonzero()[:, 0]
    found = deltas.unflatten(1, (-1, 4))[positive, wanted[positive]]
    return F.cross_entropy(logits, wanted), F.l1_loss(found, boxes[positive], reduction="sum") / len(wanted)


def mask_loss(
    logits: Float[Tensor, "region label side side"],
    targets: Float[Tensor, "region side side"],
    labels: Int64[Tensor, " region"],
) -> Float[Tensor, ""]:
    """Cross-entropy per cell of the mask of the right class; 0, with a gradient of 0, without any region."""
    if not len(labels):
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[torch.arange(len(labels), device=labels.device), labels], targets)
