"""Synthetic checkpoints of the official code: every key of every layout, at any size, with numbers that all differ."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["pretrain", "finetune"]


class Shape:
    """The size of a checkpoint."""

    def __init__(self, dim: int = 32, depth: int = 2, heads: int = 2, patch: int = 4, grid: int = 4) -> None:
        self.dim, self.depth, self.heads, self.patch, self.grid = dim, depth, heads, patch, grid


TINY = Shape()
BASE = Shape(768, 12, 12, 16, 14)
LARGE = Shape(1024, 24, 16, 16, 14)


def index_buffer(grid: int) -> Tensor:
    """The official index of a bias table, written out from its definition."""
    side, last = 2 * grid - 1, (2 * grid - 1) ** 2 + 3
    index = torch.zeros(grid**2 + 1, grid**2 + 1, dtype=torch.int64)
    for query in range(grid**2):
        for key in range(grid**2):
            rows, columns = query // grid - key // grid, query % grid - key % grid
            index[1 + query, 1 + key] = (rows + grid - 1) * side + columns + grid - 1
    index[0, :] = last - 3
    index[:, 0] = last - 2
    index[0, 0] = last - 1
    return index


def official_state(
    kind: Kind,
    shape: Shape = TINY,
    *,
    vocab_size: int = 16,
    num_classes: int = 5,
    absolute: bool = False,
    relative: bool = True,
    layer_scale: bool = True,
    use_cls: bool = False,
    index: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The state dict of an official model. `absolute` without `relative` and `layer_scale` is the BEiT of IN-1K."""
    generator = torch.Generator().manual_seed(seed)
    dim, patches, rows = shape.dim, shape.grid**2, (2 * shape.grid - 1) ** 2 + 3
    state: dict[str, Tensor] = {}

    def add(name: str, *size: int) -> None:
        if torch.get_default_device().type == "meta":
            state[name] = torch.empty(*size)
        else:
            centre = float(name.endswith(("norm1.weight", "norm2.weight", "norm.weight")))
            scale = 0.3 if len(size) == 1 else 0.1
            state[name] = centre + scale * torch.randn(*size, generator=generator)

    def add_table(stem: str) -> None:
        add(f"{stem}.relative_position_bias_table", rows, shape.heads)
        if index:
            state[f"{stem}.relative_position_index"] = index_buffer(shape.grid)

    add("cls_token", 1, 1, dim)
    if kind == "pretrain":
        add("mask_token", 1, 1, dim)
    if absolute:
        add("pos_embed", 1, 1 + patches, dim)
    add("patch_embed.proj.weight", dim, 3, shape.patch, shape.patch)
    add("patch_embed.proj.bias", dim)
    if relative and kind == "pretrain":
        add_table("rel_pos_bias")
    for i in range(shape.depth):
        block = f"blocks.{i}."
        for name in ("gamma_1", "gamma_2") if layer_scale else ():
            add(block + name, dim)
        for name in ("norm1.weight", "norm1.bias", "attn.q_bias", "attn.v_bias"):
            add(block + name, dim)
        if relative and kind == "finetune":
            add_table(block + "attn")
        add(block + "attn.qkv.weight", 3 * dim, dim)
        add(block + "attn.proj.weight", dim, dim)
        for name in ("attn.proj.bias", "norm2.weight", "norm2.bias"):
            add(block + name, dim)
        add(block + "mlp.fc1.weight", 4 * dim, dim)
        add(block + "mlp.fc1.bias", 4 * dim)
        add(block + "mlp.fc2.weight", dim, 4 * dim)
        add(block + "mlp.fc2.bias", dim)
    norm, head, outputs = ("norm", "lm_head", vocab_size) if kind == "pretrain" else ("fc_norm", "head", num_classes)
    for name in ("weight", "bias"):
        add(f"{'norm' if use_cls else norm}.{name}", dim)
    add(f"{head}.weight", outputs, dim)
    add(f"{head}.bias", outputs)
    return state


def pretrain_checkpoint(state: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """What the official pretraining saves: `args` is a pickled Namespace."""
    moments = {0: {"step": 5, "exp_avg": torch.zeros(3)}}
    return {
        "model": state,
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 799,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(**{"imagenet_default_mean_and_std": True, "input_size": 224, **options}),
    }


def save(value: Any, path: Path) -> Path:
    """Write a checkpoint as the official code does."""
    torch.save(value, path)
    return path


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names with the same numbers in the same dtypes."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )
