"""Layer-wise learning rate decay: the nearer a parameter is to the pixels, the smaller its steps.

The levels are counted from the pixels: 0 is the embedding, block i (from 0) is level i + 1, the head is the last one.
Each level below the last divides the rate once more: BEiT (Bao et al., 2022), after ELECTRA (Clark et al., 2020).
"""

import re
from typing import Any, Literal

from pydantic import Field
from torch import nn

from mcbeit.optim import UNDECAYED, Beta, OptimConfig, decays

Rule = Literal["official", "clean"]
STEM = ("cls_token", "mask_token", "pos_embed", "patch_embed")
SHARED_TABLE = "rel_pos_bias"
TABLE = "relative_position_bias_table"


class FinetuneOptimConfig(OptimConfig):
    """The optimiser of finetuning; the defaults are BEiT's for ViT-B on ImageNet-1K."""

    epochs: float = Field(100, gt=0)
    warmup_epochs: float = Field(20, ge=0)
    batch_size: int = Field(1024, ge=1)  # images per step, over all workers
    lr: float = Field(4e-3, gt=0)  # of the last level
    min_lr: float = Field(1e-6, ge=0)  # of the last level
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_grad: float | None = Field(None, gt=0)
    layer_decay: float = Field(0.65, gt=0, le=1)  # of the rate, per level
    # official: a bias table that all blocks share learns at the full rate, and tables are weight-decayed;
    # clean: it learns as the embedding does, and no table is weight-decayed
    layer_rule: Rule = "official"
    ema_decay: float | None = Field(None, ge=0, lt=1)  # per step, of averaged weights, which are then what is judged


def level_of(name: str, depth: int, rule: Rule) -> int:
    """The level of a parameter of the backbone, or of the head, by its name in the official checkpoints."""
    if name.startswith(STEM) or (rule == "clean" and name.startswith(SHARED_TABLE)):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return depth + 1 if block is None else int(block[1]) + 1


def level_scales(depth: int, layer_decay: float) -> list[float]:
    """What the learning rate is multiplied by, from the embedding to the head: layer_decay ** (depth + 1 - level)."""
    return [layer_decay ** (depth + 1 - level) for level in range(depth + 2)]


def layer_groups(
    model: nn.Module, depth: int, config: FinetuneOptimConfig, *, undecayed: frozenset[str] = UNDECAYED
) -> list[dict[str, Any]]:
    """The trainable parameters by level, each level in those that are weight-decayed and the others.

    `undecayed` names parameters that are no vectors and are not decayed either.
    """
    scales = level_scales(depth, config.layer_decay)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.removeprefix("backbone.")
            level = level_of(plain, depth, config.layer_rule)
            is_spared = config.layer_rule == "clean" and plain.endswith(TABLE)
            is_decayed = decays(plain, parameter, undecayed) and not is_spared
            new = {
                "params": [],
                "lr_scale": scales[level],
                "weight_decay": config.weight_decay if is_decayed else 0.0,
            }
            groups.setdefault((level, is_decayed), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
