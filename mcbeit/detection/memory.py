"""How much memory a training step of a detector takes, by counting what its backward pass keeps.

Assumed are AdamW in float32, CUDA, where attention keeps no matrix of weights and norms compute in float32, and no
waste of the allocator, which in practice takes some 10 to 20 % on top. It is calculated, not measured; tests hold the
counts against what torch keeps on a CPU in float32.
"""

from typing import NamedTuple

from torch import nn

from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.pyramid import FeaturePyramid
from mcbeit.detection.regions import BOX_SIDE, MASK_SIDE
from mcbeit.detection.windowed import WindowedBackbone

FULL = 4  # bytes of a float32
STATE = 4 * FULL  # of a parameter: itself, its gradient, two moments of AdamW
MAXIMA = 8 / 4  # where, in each 2 x 2 patches, the largest was
CELLS = 16 + 4 + 1 + 1 / 4  # of p2 to p5, per patch
ANCHOR_NUMBERS = 32  # float32 numbers that live for each anchor: its box, deltas, overlaps, targets


class TrainingMemory(NamedTuple):
    """Bytes."""

    fixed: int  # parameters, gradients, moments, and the copies of parameters in reduced precision
    per_image: int  # kept from the forward to the backward pass
    shared: int  # kept once for all images of a batch: the bias of attention
    working: int  # the most that lives for a moment besides: in the backward pass of a block that sees everything

    def total(self, batch_size: int) -> int:
        """Of a step of so many images; `working` is that of the batch size it was made for."""
        return self.fixed + self.shared + self.working + batch_size * self.per_image


def count_parameters(model: nn.Module) -> dict[str, int]:
    """The numbers of parameters of the parts of a model."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def training_memory(model: MaskRCNN, *, batch_size: int, number_bytes: int) -> TrainingMemory:
    """The memory of a step. `number_bytes` are those of what is computed with: 2 for bf16, 4 for float32.

    The model may lie on the device `meta`, so that none of this memory is needed to know it.
    """
    backbone, size = model.backbone, number_bytes
    parameters = sum(count_parameters(model).values())
    casts = parameters * size if size < FULL else 0
    per_image = _backbone_bytes(backbone, size) + _pyramid_bytes(model, size) + _head_bytes(model, size)
    pairs = backbone.num_heads * (backbone.grid[0] * backbone.grid[1]) ** 2
    tables = sum("bias_table" in name for name, _ in backbone.named_parameters())
    in_every_block = tables > 2 and not backbone.grad_checkpointing
    shared = pairs * size * (sum(backbone.is_global) if in_every_block else min(tables, 1))
    # the gradient of the bias, for each image and summed, and its table spread out in float32
    working = pairs * ((batch_size + 1) * size + FULL) if tables else 0
    return TrainingMemory(parameters * STATE + casts, int(per_image), int(shared), int(working))


def _backbone_bytes(backbone: WindowedBackbone, size: int) -> float:
    """Of one image: what two norms take in is float32; then come 17 numbers per patch and channel.

    Those are what qkv, proj, fc1, fc2 (four times as wide) and both layer scales take in, what GELU takes in (so, too),
    and q, k, v and the result of attention.
    """
    numbers = backbone.grid[0] * backbone.grid[1] * backbone.dim
    width = backbone.mlp_ratio
    block = numbers * (2 * FULL + (9 + 2 * width) * size)
    kept = (
        len(backbone.blocks) * FULL * numbers + block if backbone.grad_checkpointing else len(backbone.blocks) * block
    )
    return kept + 3 * (backbone.grid[0] * backbone.patch_size) ** 2 * size


def _pyramid_bytes(model: MaskRCNN, size: int) -> float:
    """Of one image: what convolutions, norms and GELU take in, between the four maps and the levels."""
    backbone, patches = model.backbone, model.backbone.grid[0] * model.backbone.grid[1]
    channels = model.rpn.head.cls_logits.in_channels
    if isinstance(model.pyramid, FeaturePyramid):
        # norm and GELU of the finest: 4 cells each; then three maps, 4 + 16 + 4 cells, 1/4 that is left of the last one
        adapters = (4 + 4) * FULL + (3 + 4 + 16 + 4 + 1 / 4) * size + FULL + MAXIMA
        return patches * (backbone.dim * adapters + 3 * CELLS * channels * size)
    copies = 3 * size if size < FULL else 0  # of the one map that all levels are made of
    # half the channels on 4 cells for norm, GELU, the next convolution, and for p3; a quarter of them on 16
    branches = (2 + 2) * FULL + (2 + 4 + 2 + 1 / 4) * size + copies + FULL + MAXIMA
    return patches * (backbone.dim * branches + CELLS * channels * (2 * FULL + size))


def _head_bytes(model: MaskRCNN, size: int) -> float:
    """Of one image: proposals on every cell, then so many regions, a quarter of which have masks."""
    patches, heads = model.backbone.grid[0] * model.backbone.grid[1], model.roi_heads
    channels, regions = model.rpn.head.cls_logits.in_channels, heads.fg_bg_sampler.count
    cells = (CELLS + 1 / 16) * patches
    proposals = cells * (3 * channels * size + 3 * ANCHOR_NUMBERS * FULL)
    boxes = regions * channels * BOX_SIDE**2 * 9 * size
    positive = regions * heads.fg_bg_sampler.positive_fraction
    masks = positive * MASK_SIDE**2 * (channels * 13 * size + 4 * (model.num_classes + 1) * (size + FULL))
    return proposals + boxes + masks
