"""How much memory a training step of a segmenter takes, by looking at what its graph keeps, on the device `meta`.

Assumed are AdamW and float32 throughout, kernels that keep no matrix of attention weights, and no waste of the
allocator, which in practice takes some 10 to 20 % on top. It is calculated, not measured.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcbeit.segmentation.segmenter import Segmenter

STATE = 16  # bytes of a parameter: itself, its gradient, two moments of AdamW
PROBED = 2  # images: batch norm takes no variance of one


class StepMemory(NamedTuple):
    """Bytes."""

    fixed: int  # parameters, gradients, moments, and the bias of attention for every pair of patches
    per_image: int  # kept from the forward to the backward pass

    def total(self, batch_size: int) -> int:
        """Of a step of so many images."""
        return self.fixed + batch_size * self.per_image


def step_memory(model: Segmenter, image_size: int) -> StepMemory:
    """The memory of a step of a model on the device `meta`, which stays in training mode."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    tokens = model.backbone.grid[0] * model.backbone.grid[1] + 1
    first: Any = model.backbone.blocks[0]
    weights = PROBED * first.attn.num_heads * tokens**2 * 4  # bytes of the weights of attention of a block
    kept: dict[int, Tensor] = {}  # the tensors stay here, so that no address is used twice
    biases: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        address, is_of_pairs = tensor.untyped_storage()._cdata, tuple(tensor.shape[-2:]) == (tokens, tokens)
        if address not in own and not is_of_pairs:
            kept.setdefault(address, tensor)
        elif is_of_pairs and tensor.untyped_storage().nbytes() < weights:
            biases.setdefault(address, tensor)
        return tensor

    with torch.device("meta"):
        images, dice = torch.zeros(PROBED, 3, image_size, image_size), torch.zeros(PROBED, model.num_dice)
        labels = torch.zeros(PROBED, image_size, image_size, dtype=torch.int64)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(model(images, dice), labels)
    total, shared = (sum(one.untyped_storage().nbytes() for one in found.values()) for found in (kept, biases))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return StepMemory(parameters * STATE + shared, total // PROBED)
