"""What a run costs: parameters, FLOPs per image, hours. 1 multiply-add = 2 FLOPs; norms and softmax are not counted."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.tokenizer import Tokenizer

STATED_SPEEDS = {  # FLOP/s that a run may sustain; assumptions, not measurements
    "2 CPU cores at 0.2 TFLOP/s": 0.2e12,
    "1 x A100 at half of its 312 TFLOP/s": 0.5 * 312e12,
    "8 x A100 at half of their 312 TFLOP/s": 8 * 0.5 * 312e12,
    "8 x H100 at half of their 790 TFLOP/s": 8 * 0.5 * 790e12,
}


class Cost(NamedTuple):
    """FLOPs of one image with one mask: forward and backward of backbone and head, forward of the tokenizer."""

    backbone: float
    head: float
    teacher: float  # this and the tokenizer's are already divided by the masks per image
    tokenizer: float

    @property
    def total(self) -> float:
        """FLOPs per image and mask."""
        return self.backbone + self.head + self.teacher + self.tokenizer


def backbone_flops(
    *, num_patches: int, patch_size: int, dim: int, depth: int, mlp_ratio: float = 4.0, channels: int = 3
) -> float:
    """One forward pass of the backbone: per block (8 + 4 r) T D^2 + 4 T^2 D for T tokens of width D and an MLP of
    width r D, plus the embedding.
    """
    tokens = num_patches + 1
    return depth * ((8 + 4 * mlp_ratio) * tokens * dim**2 + 4.0 * tokens**2 * dim) + patch_embedding_flops(
        num_patches, patch_size, dim, channels
    )


def patch_embedding_flops(num_patches: int, patch_size: int, dim: int, channels: int = 3) -> float:
    """One forward pass of the patch embedding."""
    return 2.0 * num_patches * channels * patch_size**2 * dim


def head_flops(*, num_masked: int, dim: int, vocab_size: int) -> float:
    """One forward pass of the vocabulary head, masked patches only."""
    return 2.0 * num_masked * dim * vocab_size


def tokenizer_flops(tokenizer: Tokenizer, view_size: int) -> float:
    """One forward pass of a tokenizer, counted on the operations that it runs."""
    parameter = next(tokenizer.parameters())
    images = torch.zeros(1, tokenizer.channels, view_size, view_size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tokenizer.code_logits(images)
    return float(counter.get_total_flops())


def estimate(
    *,
    num_patches: int,
    patch_size: int,
    dim: int,
    depth: int,
    num_masked: int,
    vocab_size: int,
    tokenizer: float,
    masks_per_image: int,
    has_teacher: bool,
    mlp_ratio: float = 4.0,
    channels: int = 3,
) -> Cost:
    """The cost of one image and mask; a backward pass is twice its forward, without the gradient of the pixels.

    Tokenizer and teacher see an image once for all its masks.
    """
    forward = backbone_flops(
        num_patches=num_patches, patch_size=patch_size, dim=dim, depth=depth, mlp_ratio=mlp_ratio, channels=channels
    )
    return Cost(
        backbone=3 * forward - patch_embedding_flops(num_patches, patch_size, dim, channels),
        head=3 * head_flops(num_masked=num_masked, dim=dim, vocab_size=vocab_size),
        teacher=forward / masks_per_image if has_teacher else 0.0,
        tokenizer=tokenizer / masks_per_image,
    )
