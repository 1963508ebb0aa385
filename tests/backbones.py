"""Small backbones with weights that are not those of an init, as files."""

from pathlib import Path
from typing import Any

import torch
from timm.models.beit import Beit

from mcbeit.vit import ModelConfig, VisionTransformer

TINY: dict[str, Any] = {"dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "layer_scale": 0.1}


def scramble(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn anew, so that none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def backbone(image_size: int = 32, *, seed: int = 0, channels: int = 3, **options: Any) -> VisionTransformer:
    """A BEiT of three blocks."""
    model = VisionTransformer(ModelConfig(**{**TINY, **options}), image_size=image_size, channels=channels)
    scramble(model, seed)
    return model


def save_backbone(path: Path, model: Beit) -> Path:
    """A checkpoint of the official code."""
    torch.save({"model": model.state_dict()}, path)
    return path
