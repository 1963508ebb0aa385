"""The backbone: timm's `Beit` plus mask token, init of the paper, exact table resize and sin-cos positions."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.beit import Beit, RelativePositionBias
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcbeit.config import Config
from mcbeit.drop_path import DiceDropPath, throw, use_dice
from mcbeit.relative_position import resize_table

SIZES = {  # dim, depth, heads; the MLP is 4 times as wide
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class ModelConfig(Config):
    """The backbone. `dim`, `depth` and `num_heads` default to those of `size` (tiny, small, base, large)."""

    size: Literal["tiny", "small", "base", "large"] = "base"
    dim: int | None = Field(None, gt=0)
    depth: int | None = Field(None, gt=0)
    num_heads: int | None = Field(None, gt=0)
    patch_size: int = Field(16, gt=0)
    # with sincos or learned, absolute positions are parameters too; sincos is what they start at
    position: Literal["relative", "relative+sincos", "relative+learned"] = "relative"
    init: Literal["beit", "xavier"] = "beit"
    layer_scale: float = Field(0.1, ge=0)  # initial value; 0 = no layer scale
    drop_path: float = Field(0.1, ge=0, lt=1)  # rate of the last block, growing linearly from 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """dim, depth, num_heads, with the size's values filled in."""
        dim, depth, heads = SIZES[self.size]
        return self.dim or dim, self.depth or depth, self.num_heads or heads

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "ModelConfig":
        dim, _, heads = self.shape
        if dim % heads:
            raise ValueError(f"model.dim ({dim}) must be a multiple of model.num_heads ({heads})")
        return self


class VisionTransformer(Beit):
    """A BEiT backbone without head; parameter names are those of the official checkpoints and of timm.

    `rel_pos_bias` is one table shared by all blocks, `norm` is the final LayerNorm over all tokens (eps 1e-6).
    """

    def __init__(self, config: ModelConfig, *, image_size: int, channels: int = 3) -> None:
        dim, depth, heads = config.shape
        super().__init__(
            img_size=image_size,
            patch_size=config.patch_size,
            in_chans=channels,
            num_classes=0,
            global_pool="token",
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            drop_path_rate=config.drop_path,
            init_values=config.layer_scale or None,
            use_abs_pos_emb=config.position != "relative",
            use_shared_rel_pos_bias=True,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        use_dice(self.blocks)
        initialise(self, config)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        height, width = self.patch_embed.grid_size
        return int(height), int(width)

    @property
    def num_dice(self) -> int:
        """Dice per row that drop path needs in training; 0 without drop path."""
        return 2 * len(self.blocks) if any(isinstance(module, DiceDropPath) for module in self.modules()) else 0

    def forward_tokens(
        self,
        images: Float[Tensor, "batch channel height width"],
        mask: Bool[Tensor, "batch patch"] | None = None,
        dice: Float[Tensor, "batch die"] | None = None,
    ) -> Float[Tensor, "batch token dim"]:
        """All tokens after the final norm, the cls token first; masked patches are replaced by the mask token.

        The mask is applied before positions are added, so the network knows where it must predict. `dice`, uniform in
        [0, 1), decide in training which branches drop path leaves out.
        """
        throw(self.blocks, dice)
        tokens = self._embed(images, mask)
        bias = self.rel_pos_bias()
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, shared_rel_pos_bias=bias, use_reentrant=False)
            else:
                tokens = block(tokens, shared_rel_pos_bias=bias)
        return self.norm(tokens)

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.patch_embed(images)
        if mask is not None:
            tokens = torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size; the bias table is resized by the exact geometric rule (timm's is linear)."""
        if patch_size is not None:
            raise ValueError("the patch size of a trained backbone is fixed")
        old_grid = self.grid
        self.patch_embed.set_input_size(img_size=img_size)
        if self.pos_embed is not None and self.grid != old_grid:
            resized = resample_abs_pos_embed(self.pos_embed, new_size=self.grid, old_size=old_grid, num_prefix_tokens=1)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        old_table = self.rel_pos_bias.relative_position_bias_table
        table = resize_table(old_table, old_grid, self.grid)
        self.rel_pos_bias = RelativePositionBias(self.grid, table.shape[1]).to(table.device)
        self.rel_pos_bias.relative_position_bias_table = nn.Parameter(table, requires_grad=old_table.requires_grad)


def initialise(model: VisionTransformer, config: ModelConfig) -> None:
    """Draw the weights as BEiT's pretraining does, or by Xavier's rule, which trains faster in short runs.

    beit: normal(0, 0.02) cut at one sigma (real std 0.0108), then `attn.proj` and `mlp.fc2` of block i (from 0)
    divided by sqrt(2 (i + 1)). xavier: uniform Xavier for all linear layers, without the division.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            _draw(module.weight, config.init)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if config.init == "beit":
        model.fix_init_weight()
    for token in (model.cls_token, model.mask_token):
        truncated_normal(token)
    if config.position == "relative+sincos":
        assert model.pos_embed is not None
        with torch.no_grad():
            model.pos_embed.zero_()[:, 1:].copy_(0.5 * sincos_positions(model.grid, model.embed_dim))
    elif model.pos_embed is not None:
        truncated_normal(model.pos_embed)


def truncated_normal(tensor: Tensor, std: float = 0.02) -> None:
    """Normal with standard deviation `std`, cut at one sigma: the official pretraining init."""
    nn.init.trunc_normal_(tensor, std=std, a=-std, b=std)


def _draw(weight: Tensor, rule: str) -> None:
    if rule == "beit":
        truncated_normal(weight)
    else:
        nn.init.xavier_uniform_(weight.view(len(weight), -1))


def sincos_positions(grid: tuple[int, int], dim: int) -> Float[Tensor, "patch dim"]:
    """2-D sine-cosine positions in [-1, 1]: the first half of `dim` encodes the row, the second the column."""
    quarter = dim // 4
    frequencies = torch.exp(torch.arange(quarter) * (-math.log(10000.0) / quarter))
    axes = [torch.arange(size).float()[:, None] * frequencies for size in grid]
    rows, columns = (torch.cat([axis.sin(), axis.cos()], dim=1) for axis in axes)
    table = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], dim=-1)
    return nn.functional.pad(table.flatten(0, 1), (0, dim - 4 * quarter))
