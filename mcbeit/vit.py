"""The backbone: timm's `Beit` plus mask token, init of the paper, exact table resize and sin-cos positions."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.beit import Attention, Beit, RelativePositionBias, gen_relative_position_index
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcbeit.config import Config
from mcbeit.drop_path import DiceDropPath, throw, use_dice
from mcbeit.relative_position import num_table_rows, resize_table

SIZES = {  # dim, depth, heads
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
    mlp_ratio: float = Field(4.0, gt=0)  # width of the MLP, in dims
    patch_size: int = Field(16, gt=0)
    # with sincos or learned, absolute positions are parameters too; sincos is what they start at
    position: Literal["relative", "relative+sincos", "relative+learned", "learned"] = "relative"
    bias_tables: Literal["shared", "per-block"] = "shared"  # of relative positions: one for all blocks, or one each
    # what the last norm is applied to: all tokens, or, in finetuned models, the mean of the patch tokens
    final_norm: Literal["tokens", "pooled"] = "tokens"
    init: Literal["beit", "xavier"] = "beit"
    layer_scale: float = Field(0.1, ge=0)  # initial value; 0 = no layer scale
    drop_path: float = Field(0.1, ge=0, lt=1)  # rate of the last block, growing linearly from 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """dim, depth, num_heads, with the size's values filled in."""
        dim, depth, heads = SIZES[self.size]
        return self.dim or dim, self.depth or depth, self.num_heads or heads

    @property
    def is_relative(self) -> bool:
        """Whether attention has relative position bias tables."""
        return self.position != "learned"

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "ModelConfig":
        dim, _, heads = self.shape
        if dim % heads:
            raise ValueError(f"model.dim ({dim}) must be a multiple of model.num_heads ({heads})")
        return self


class VisionTransformer(Beit):
    """A BEiT backbone without head; parameter names are those of the official checkpoints and of timm.

    `rel_pos_bias` is one table shared by all blocks, `norm` is the final LayerNorm over all tokens (eps 1e-6). As
    finetuned models have it, each block may have a table of its own, and `fc_norm` of the pooled tokens replace `norm`.
    """

    rel_pos_bias: RelativePositionBias | None  # type: ignore[assignment]  # timm sets None too, but does not say so

    def __init__(self, config: ModelConfig, *, image_size: int, channels: int = 3) -> None:
        dim, depth, heads = config.shape
        super().__init__(
            img_size=image_size,
            patch_size=config.patch_size,
            in_chans=channels,
            num_classes=0,
            global_pool="token" if config.final_norm == "tokens" else "avg",
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            init_values=config.layer_scale or None,
            use_abs_pos_emb=config.position != "relative",
            use_rel_pos_bias=config.is_relative and config.bias_tables == "per-block",
            use_shared_rel_pos_bias=config.is_relative and config.bias_tables == "shared",
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
        """All tokens after `norm`, the cls token first; masked patches are replaced by the mask token.

        The mask is applied before positions are added, so the network knows where it must predict. `dice`, uniform in
        [0, 1), decide in training which branches drop path leaves out.
        """
        for tokens in self._after_blocks(images, mask, dice):
            last = tokens
        return self.norm(last)

    def forward_maps(
        self,
        images: Float[Tensor, "batch channel height width"],
        blocks: Sequence[int],
        dice: Float[Tensor, "batch die"] | None = None,
    ) -> list[Float[Tensor, "batch dim row column"]]:
        """The patch tokens after some blocks, counted from 0, in their places; no norm, no cls token."""
        found = {i: tokens for i, tokens in enumerate(self._after_blocks(images, None, dice)) if i in blocks}
        return [found[block][:, 1:].mT.unflatten(2, self.grid) for block in blocks]

    def _after_blocks(self, images: Tensor, mask: Tensor | None, dice: Tensor | None) -> Iterator[Tensor]:
        """All tokens after each block."""
        throw(self.blocks, dice)
        tokens = self._embed(images, mask)
        bias = None if self.rel_pos_bias is None else self.rel_pos_bias()
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, shared_rel_pos_bias=bias, use_reentrant=False)
            else:
                tokens = block(tokens, shared_rel_pos_bias=bias)
            yield tokens

    def pooled(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch dim"]:
        """The mean of the patch tokens that `forward_tokens` gave, normed if the norm is that of pooled tokens.

        The cls token is not in it: pretraining leaves it untrained.
        """
        return self.fc_norm(tokens[:, 1:].float().mean(dim=1))

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.patch_embed(images)
        if mask is not None:
            tokens = torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens if self.pos_embed is None else tokens + self.pos_embed

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the image size: `resize_table` and `resize_positions` are the official rules, which are not timm's."""
        if patch_size is not None:
            raise ValueError("the patch size of a trained backbone is fixed")
        old_grid = self.grid
        self.patch_embed.set_input_size(img_size=img_size)
        if self.grid == old_grid:
            return
        if self.pos_embed is not None:
            resized = resize_positions(self.pos_embed, old_grid, self.grid)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        if self.rel_pos_bias is not None:
            old_table = self.rel_pos_bias.relative_position_bias_table
            self.rel_pos_bias = RelativePositionBias(self.grid, old_table.shape[1]).to(old_table.device)
            self.rel_pos_bias.relative_position_bias_table = _resized(old_table, old_grid, self.grid)
        for attention in (module for module in self.blocks.modules() if isinstance(module, Attention)):
            table = attention.relative_position_bias_table
            if table is not None:
                attention.relative_position_bias_table = _resized(table, old_grid, self.grid)
                attention.window_size, attention.num_relative_distance = self.grid, num_table_rows(self.grid)
                index = gen_relative_position_index(self.grid, device=table.device)
                attention.register_buffer("relative_position_index", index, persistent=False)


def resize_positions(
    positions: Float[Tensor, "1 source dim"], source_grid: tuple[int, int], target_grid: tuple[int, int]
) -> Float[Tensor, "1 target dim"]:
    """Absolute positions for another patch grid: bicubic, not antialiased; the first is the cls token's and stays."""
    return resample_abs_pos_embed(
        positions, new_size=list(target_grid), old_size=list(source_grid), num_prefix_tokens=1, antialias=False
    )


def _resized(table: nn.Parameter, old_grid: tuple[int, int], grid: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(resize_table(table, old_grid, grid), requires_grad=table.requires_grad)


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
