"""The backbone for detection: most blocks see windows of a large image, the last block of each quarter sees all of it.

The paper's protocol is that of "Benchmarking Detection Transfer Learning with Vision Transformers" (Li et al., 2021) as
MIMDet wrote it: there is no cls token and no final norm, what each quarter of the blocks gives is an output. Where the
grid is no whole number of windows, it is padded at the right and at the bottom, and padding is masked. The official
code refuses such grids; ViTDet's lets patches attend to its zeros.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.beit import Attention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mcbeit.drop_path import DiceDropPath, throw
from mcbeit.errors import ConfigError
from mcbeit.image_files import COLOURS
from mcbeit.relative_position import NUM_CLS_ROWS, num_table_rows
from mcbeit.vit import ModelConfig, VisionTransformer

NUM_STAGES = 4
WINDOW = 16  # patches per side, of the paper
Extent = tuple[int, int]  # rows and columns of patches that see each other


def num_distances(extent: Extent) -> int:
    """The rows of a bias table without those of the cls token."""
    return num_table_rows(extent) - NUM_CLS_ROWS


def expand_table(table: Float[Tensor, "distance head"], extent: Extent) -> Float[Tensor, "head query key"]:
    """The bias of every pair of patches: row (y_q - y_k + rows - 1) * (2 * columns - 1) + (x_q - x_k + columns - 1).

    Nothing is gathered by index, which for 64 x 64 patches would be a table of 134 MB: what one query sees is a window
    of the table, read backwards. Under autocast the result has the reduced precision, its gradient is summed in full.
    """
    rows, columns = extent
    seen = table.view(2 * rows - 1, 2 * columns - 1, -1).unfold(0, rows, 1).unfold(1, columns, 1)
    bias = seen.permute(2, 0, 1, 3, 4).flip(-1, -2).reshape(-1, rows * columns, rows * columns)
    kind = table.device.type
    return bias.to(torch.get_autocast_dtype(kind)) if kind != "meta" and torch.is_autocast_enabled(kind) else bias


class RelativeBias(nn.Module):
    """A bias table that several blocks share, without the rows of the cls token."""

    def __init__(self, extent: Extent, num_heads: int) -> None:
        super().__init__()
        self.extent = extent
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_distances(extent), num_heads))

    def forward(self) -> Float[Tensor, "head query key"]:
        """See `expand_table`."""
        return expand_table(self.relative_position_bias_table, self.extent)


class WindowAttention(nn.Module):
    """BEiT's attention among the patches of each window; a window may be the whole grid.

    It takes over the layers of timm's attention. `has_table`: with a bias table of its own.
    """

    padding: Tensor | None

    def __init__(self, attention: Attention, grid: Extent, extent: Extent, *, has_table: bool) -> None:
        super().__init__()
        self.grid, self.extent, self.num_heads = grid, extent, attention.num_heads
        self.qkv, self.q_bias, self.v_bias, self.proj = (
            attention.qkv,
            attention.q_bias,
            attention.v_bias,
            attention.proj,
        )
        self.relative_position_bias_table: nn.Parameter | None = None
        if has_table:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(num_distances(extent), self.num_heads))
        self.reset_padding()

    def reset_padding(self) -> None:
        """Compute anew what is kept in no file."""
        self.register_buffer("padding", _padding_bias(self.grid, self.extent), persistent=False)

    def forward(
        self, x: Float[Tensor, "batch patch dim"], shared_rel_pos_bias: Float[Tensor, "head query key"] | None = None
    ) -> Float[Tensor, "batch patch dim"]:
        """The names of the arguments are those by which timm's block calls."""
        windows = split_windows(x, self.grid, self.extent)
        count, size, _ = windows.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # keys have none
        qkv = F.linear(windows, self.qkv.weight, bias).view(count, size, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(shared_rel_pos_bias, len(x)))
        return self.proj(join_windows(seen.transpose(1, 2).flatten(2), self.grid, self.extent))

    def _bias(self, shared: Tensor | None, batch: int) -> Tensor | None:
        bias = shared
        if self.relative_position_bias_table is not None:
            bias = expand_table(self.relative_position_bias_table, self.extent)
        if self.padding is None:
            return bias
        padding = self.padding.repeat(batch, 1, 1, 1)
        return padding if bias is None else bias + padding.to(bias.dtype)


def split_windows(
    tokens: Float[Tensor, "batch patch dim"], grid: Extent, extent: Extent
) -> Float[Tensor, "batch_window inner dim"]:
    """The patches window by window, those of one image after each other; beyond the grid lie zeros."""
    (rows, columns), (height, width) = _num_windows(grid, extent), extent
    tokens = tokens.unflatten(1, grid)
    right, below = columns * width - grid[1], rows * height - grid[0]
    tokens = F.pad(tokens, (0, 0, 0, right, 0, below)) if right or below else tokens
    windows = tokens.unflatten(2, (columns, width)).unflatten(1, (rows, height)).transpose(2, 3)
    return windows.reshape(-1, height * width, tokens.shape[-1])


def join_windows(
    windows: Float[Tensor, "batch_window inner dim"], grid: Extent, extent: Extent
) -> Float[Tensor, "batch patch dim"]:
    """The reverse of `split_windows`."""
    (rows, columns), (height, width) = _num_windows(grid, extent), extent
    tokens = windows.view(-1, rows, columns, height, width, windows.shape[-1]).transpose(2, 3)
    return tokens.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].flatten(1, 2)


def _num_windows(grid: Extent, extent: Extent) -> tuple[int, int]:
    return -(-grid[0] // extent[0]), -(-grid[1] // extent[1])


def _padding_bias(grid: Extent, extent: Extent) -> Float[Tensor, "window 1 1 key"] | None:
    """What hides padding as a key: -inf, in all windows of an image; None where nothing is padded."""
    if not (grid[0] % extent[0] or grid[1] % extent[1]):
        return None
    real = split_windows(torch.ones(1, grid[0] * grid[1], 1), grid, extent)[:, None, None, :, 0]
    return torch.zeros_like(real).masked_fill(real == 0, float("-inf"))


class WindowedBackbone(nn.Module):
    """A BEiT whose blocks attend in windows, but for the last of each quarter of them.

    Names are those of the official checkpoints. `bias_tables: shared` of the config gives the official two tables,
    `windowed_rel_pos_bias` and `global_rel_pos_bias`; `per-block` one in each block. `pos_embed` begins with zeros.
    Drop path leaves out a branch for a whole image; the official code draws for each window.
    """

    def __init__(self, config: ModelConfig, *, image_size: int, window: int = WINDOW, channels: int = COLOURS) -> None:
        super().__init__()
        dim, depth, heads = config.shape
        if depth % NUM_STAGES:
            raise ConfigError(
                f"detection takes features after each quarter of the blocks: model.depth must be a multiple of "
                f"{NUM_STAGES}, found {depth}"
            )
        if image_size % config.patch_size:
            raise ConfigError(f"image size {image_size} is no multiple of the patch size {config.patch_size}")
        plain = config.model_copy(update={"position": "learned"})  # builds no tables for the whole grid
        body = VisionTransformer(plain, image_size=image_size, channels=channels)
        self.patch_embed, self.blocks, self.grid = body.patch_embed, body.blocks, body.grid
        self.dim, self.num_heads, self.mlp_ratio, self.patch_size = dim, heads, config.mlp_ratio, config.patch_size
        self.grad_checkpointing = False
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], dim))
        self.is_global = [(i + 1) % (depth // NUM_STAGES) == 0 for i in range(depth)]
        self.window = (min(window, self.grid[0]), min(window, self.grid[1]))
        is_shared, has_windows = config.is_relative and config.bias_tables == "shared", not all(self.is_global)
        self.windowed_rel_pos_bias = RelativeBias(self.window, heads) if is_shared and has_windows else None
        self.global_rel_pos_bias = RelativeBias(self.grid, heads) if is_shared else None
        has_table = config.is_relative and not is_shared
        for i, block in enumerate(self.blocks):
            assert isinstance(block.attn, Attention)
            block.attn = WindowAttention(block.attn, self.grid, self.extent_of(i), has_table=has_table)

    def extent_of(self, block: int) -> Extent:
        """What a patch sees in a block."""
        return self.grid if self.is_global[block] else self.window

    @property
    def num_dice(self) -> int:
        """Dice per image that drop path needs in training; 0 without drop path."""
        return 2 * len(self.blocks) if any(isinstance(module, DiceDropPath) for module in self.modules()) else 0

    def forward(
        self, images: Float[Tensor, "batch channel height width"], dice: Float[Tensor, "batch die"] | None = None
    ) -> list[Float[Tensor, "batch dim row column"]]:
        """The maps after each quarter of the blocks, without norm; `dice` are those of `DiceDropPath`."""
        throw(self.blocks, dice)
        tokens = self.patch_embed(images) + self.pos_embed
        windowed, whole = (
            None if bias is None else bias() for bias in (self.windowed_rel_pos_bias, self.global_rel_pos_bias)
        )
        maps = []
        for block, is_global in zip(self.blocks, self.is_global, strict=True):
            bias = whole if is_global else windowed
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, shared_rel_pos_bias=bias, use_reentrant=False)
            else:
                tokens = block(tokens, shared_rel_pos_bias=bias)
            if is_global:
                maps.append(tokens.transpose(1, 2).unflatten(2, self.grid))
        return maps
