"""A small segmenter as the official code keeps it, in the layout of mmsegmentation."""

from typing import Any

import torch
from official import Shape, official_state
from torch import Tensor

from mcbeit.segmentation.segmenter import Segmenter
from mcbeit.vit import ModelConfig, VisionTransformer

SHAPE = Shape(depth=4, grid=8)  # 32 px
MODEL = ModelConfig(dim=32, depth=4, num_heads=2, patch_size=4, bias_tables="per-block", final_norm="pooled")


def official_segmenter(num_classes: int = 3) -> dict[str, Tensor]:
    """The state of the official code: the pyramid in the backbone, no final norm, indices of bias tables."""
    torch.manual_seed(0)
    heads = {"taps": (0, 1, 2, 3), "channels": 8, "auxiliary_channels": 8, "auxiliary_weight": 0.4}
    model = Segmenter(VisionTransformer(MODEL, image_size=32), num_classes, **heads)
    state = {f"backbone.{name}": value for name, value in official_state("finetune", SHAPE).items()}
    for name in [name for name in state if ".fc_norm." in name or ".head." in name]:
        del state[name]
    for name, value in model.state_dict().items():
        if not name.startswith("backbone."):
            state[name.replace("pyramid.", "backbone.")] = value + 0.01 if value.is_floating_point() else value
    return state


def checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"meta": {"CLASSES": ["a", "b", "c"], "PALETTE": [[1, 2, 3]] * 3, "iter": 160000}, "state_dict": state}
