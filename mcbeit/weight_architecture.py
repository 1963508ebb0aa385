"""What model a set of tensors belongs to, found from their names and shapes."""

import functools
import math
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.image_files import COLOURS
from mcbeit.relative_position import NUM_CLS_ROWS
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.weight_account import some

HEAD_DIM = 64  # of every published BEiT; counts only where no bias table tells the number of heads
PATCHES = "patch_embed.proj.weight"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
BLOCK_TABLE = "attn.relative_position_bias_table"
VOCABULARY_HEAD = ("lm_head.weight", "lm_head.bias")
CLASSIFIER = ("head.weight", "head.bias")
OPTIONAL = frozenset({"mask_token"})  # finetuned models have none

Tensors = Mapping[str, Tensor]


def infer_model(
    tensors: Tensors, origin: str, *, num_heads: int | None = None, needs_norm: bool = True
) -> tuple[ModelConfig, int]:
    """The model that the tensors belong to, and its image size in pixels.

    `num_heads` counts where no bias table tells it. Without a final norm the model is one of pooled tokens, unless
    `needs_norm`. Raises WeightsError if a tensor that tells the shape is missing or
    if the shape is ambiguous; says what to set.
    """
    dim = _shape(tensors, "cls_token", 3, origin)[2]
    rows, _, height, width = _shape(tensors, PATCHES, 4, origin)
    if height != width or rows != dim:
        raise WeightsError(
            f"'{origin}' embeds patches of {height} x {width} pixels into width {rows}; square patches and width "
            f"{dim}, as of cls_token, are what a BEiT backbone here has"
        )
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, origin)[0]
    table = _table_shape(tensors, origin)
    position = _position(table is not None, "pos_embed" in tensors, origin)
    config = ModelConfig(
        dim=dim,
        depth=_depth(tensors, origin),
        num_heads=_num_heads(None if table is None else table[1], dim, num_heads, origin),
        mlp_ratio=hidden_ratio(hidden, dim),
        patch_size=height,
        position=position,
        bias_tables="per-block" if f"blocks.0.{BLOCK_TABLE}" in tensors else "shared",
        final_norm=_final_norm(tensors, origin, needs_norm=needs_norm),
        layer_scale=0.1 if "blocks.0.gamma_1" in tensors else 0.0,
    )
    return config, _grid_size(tensors, table, origin) * height


def num_channels(tensors: Tensors) -> int:
    """Channels of the images that the tensors are for; of colours, if no tensor tells."""
    return tensors[PATCHES].shape[1] if PATCHES in tensors and tensors[PATCHES].ndim == 4 else COLOURS


@functools.lru_cache(maxsize=16)
def model_shapes(config: ModelConfig, image_size: int, channels: int = COLOURS) -> Mapping[str, tuple[int, ...]]:
    """The names and shapes of the tensors of a backbone."""
    with torch.device("meta"):
        return {
            name: tuple(value.shape)
            for name, value in VisionTransformer(config, image_size=image_size, channels=channels).state_dict().items()
        }


def check_shapes(
    tensors: Tensors, config: ModelConfig, image_size: int, origin: str, *, optional: Collection[str] = ()
) -> None:
    """Raises WeightsError with every tensor of the backbone that is missing, has another shape, or is not finite."""
    wanted = model_shapes(config, image_size, num_channels(tensors))
    if missing := [name for name in wanted if name not in tensors and name not in {*OPTIONAL, *optional}]:
        raise WeightsError(f"'{origin}' lacks what its model needs: {some(missing)}")
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    for weight, bias in (VOCABULARY_HEAD, CLASSIFIER):
        if (weight in tensors) != (bias in tensors):
            raise WeightsError(f"'{origin}' has only one of {weight} and {bias}")
        if weight in tensors and tuple(tensors[weight].shape) != (len(tensors[bias]), config.shape[0]):
            wrong.append(f"{weight} is {list(tensors[weight].shape)}, not [{len(tensors[bias])}, {config.shape[0]}]")
    if wrong:
        raise WeightsError(f"'{origin}' holds tensors of other sizes than its model has: {some(wrong)}")
    if other := [name for name, value in tensors.items() if not value.is_floating_point()]:
        raise WeightsError(f"'{origin}' holds tensors that are no floating-point numbers: {some(other)}")
    if broken := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise WeightsError(f"'{origin}' holds numbers that are not finite (NaN or infinite): {some(broken)}")


def has_one_table(tensors: Tensors, depth: int) -> bool:
    """Whether the bias tables of all blocks are the same to the bit, so that one shared table says as much."""
    tables = [tensors[f"blocks.{i}.{BLOCK_TABLE}"] for i in range(depth)]
    return all(torch.equal(table, tables[0]) for table in tables)


def _shape(tensors: Tensors, name: str, ndim: int, origin: str) -> tuple[int, ...]:
    if name not in tensors:
        found = f"; it holds {some(tensors)}" if tensors else ""
        raise WeightsError(f"'{origin}' is no BEiT backbone: it has no '{name}'{found}")
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim:
        raise WeightsError(f"'{name}' of '{origin}' has {len(shape)} dimensions, a BEiT's has {ndim}")
    return shape


def _depth(tensors: Tensors, origin: str) -> int:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    if gaps := sorted(set(range(max(blocks))) - blocks):
        raise WeightsError(f"'{origin}' has blocks up to {max(blocks)}, but lacks {', '.join(map(str, gaps[:8]))}")
    return len(blocks)


def _table_shape(tensors: Tensors, origin: str) -> tuple[int, ...] | None:
    """Rows and heads of the bias tables; None if there are none."""
    names = [name for name in (SHARED_TABLE, f"blocks.0.{BLOCK_TABLE}") if name in tensors]
    if len(names) == 2:
        raise WeightsError(f"'{origin}' has both '{names[0]}' and tables of single blocks; a BEiT has one kind")
    return _shape(tensors, names[0], 2, origin) if names else None


def _num_heads(of_table: int | None, dim: int, given: int | None, origin: str) -> int:
    if of_table is not None and given not in (None, of_table):
        raise WeightsError(f"'{origin}' has {of_table} attention heads by its bias table, not {given}")
    heads = of_table or given
    if heads is None and dim % HEAD_DIM:
        raise WeightsError(
            f"'{origin}' does not tell its number of attention heads: it has no bias table, and its width {dim} is no "
            f"multiple of {HEAD_DIM}. Say it: --num-heads, or model.num_heads in a config"
        )
    heads = heads or dim // HEAD_DIM
    if dim % heads:
        raise WeightsError(f"'{origin}' has width {dim}, which {heads} attention heads do not divide")
    return heads


def hidden_ratio(hidden: int, dim: int) -> float:
    """The ratio of which timm makes `hidden` again: it cuts off `dim * ratio`."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _position(has_table: bool, has_absolute: bool, origin: str) -> str:
    match has_table, has_absolute:
        case True, True:
            return "relative+learned"
        case True, False:
            return "relative"
        case False, True:
            return "learned"
    raise WeightsError(f"'{origin}' has no positions: neither a relative_position_bias_table nor 'pos_embed'")


def _final_norm(tensors: Tensors, origin: str, *, needs_norm: bool) -> str:
    found = [name for name in ("norm", "fc_norm") if f"{name}.weight" in tensors]
    if not found and not needs_norm:
        return "pooled"
    if len(found) != 1:
        has = "both 'norm' and 'fc_norm'" if found else "neither 'norm' nor 'fc_norm'"
        raise WeightsError(f"'{origin}' has {has}; a BEiT has the first, or the second if it was finetuned")
    return "tokens" if found == ["norm"] else "pooled"


def _grid_size(tensors: Tensors, table: tuple[int, ...] | None, origin: str) -> int:
    """Patches per side."""
    if table is not None:
        side = math.isqrt(max(table[0] - NUM_CLS_ROWS, 0))
        if side**2 != table[0] - NUM_CLS_ROWS or side % 2 == 0:
            raise WeightsError(
                f"a bias table of '{origin}' has {table[0]} rows, which is no (2n - 1)^2 + 3 of a square grid of n x n "
                "patches with a cls token; other grids cannot be loaded"
            )
        return (side + 1) // 2
    patches = _shape(tensors, "pos_embed", 3, origin)[1] - 1
    side = math.isqrt(max(patches, 0))
    if side == 0 or side**2 != patches:
        raise WeightsError(f"'pos_embed' of '{origin}' is of {patches} patches, which make no square grid")
    return side
