"""Trained weights for the backbone of detection, with an account of every key."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mcbeit.detection.windowed import WINDOW, Extent, WindowedBackbone, num_distances
from mcbeit.errors import WeightsError
from mcbeit.relative_position import NUM_CLS_ROWS, resize_table
from mcbeit.vit import ModelConfig, resize_positions
from mcbeit.weight_account import Account, Fate, some
from mcbeit.weight_architecture import BLOCK_TABLE, SHARED_TABLE
from mcbeit.weight_fitting import IGNORED, casting
from mcbeit.weights import Weights

TABLE = "relative_position_bias_table"
UNUSED = {
    **IGNORED,
    **dict.fromkeys(("norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"), "detection uses no final norm"),
    "cls_token": "detection has no cls token",
    "mask_token": "only pretraining has masked patches",
}


def resize_plainly(
    table: Float[Tensor, "source_rows head"], source: Extent, target: Extent
) -> Float[Tensor, "target_rows head"]:
    """A bias table without its cls rows, resized as a picture: bicubic, not by `resize_table`'s progression.

    So the official code does it where all blocks share a table, and only there.
    """
    sides = [[2 * side - 1 for side in extent] for extent in (source, target)]
    picture = table[:-NUM_CLS_ROWS].float().T.unflatten(1, sides[0])[None]
    return F.interpolate(picture, size=sides[1], mode="bicubic", align_corners=False)[0].flatten(1).T.contiguous()


def fit_windowed(
    weights: Weights, config: ModelConfig, image_size: int, *, window: int = WINDOW
) -> tuple[dict[str, Tensor], Account]:
    """What `WindowedBackbone(config, ...)` loads, in float32 and memory of its own, and the account of the keys.

    `config.bias_tables` says which tables it has. Absolute positions are resized if the weights have any. Raises
    WeightsError if the weights do not fit the model, or if blocks with tables of their own should share one.
    """
    with torch.device("meta"):
        model = WindowedBackbone(config, image_size=image_size, window=window, channels=weights.channels)
    if config.is_relative:
        weights = weights.with_tables(config.bias_tables)
    account, state = copy.deepcopy(weights.account), dict[str, Tensor]()
    for name, value in weights.tensors.items():
        key = weights.keys[name]
        if name == SHARED_TABLE:
            state |= _shared_tables(value, weights, model, account)
        elif name.endswith(BLOCK_TABLE):
            extent = model.extent_of(int(name.split(".")[1]))
            state[name] = resize_table(value, weights.grid, extent)[:-NUM_CLS_ROWS]
            account.note(key, "resized", "bias table on a geometric progression, without the rows of the cls token")
        elif name == "pos_embed":
            state[name] = resize_positions(value, weights.grid, model.grid)[:, 1:]
            account.note(key, "resized", f"positions, for {model.grid[0]} x {model.grid[1]} patches, without cls token")
        elif name in UNUSED:
            account.note(key, "ignored", UNUSED[name])
        else:
            state[name] = value
            account.note(key, *casting(value))
    if "pos_embed" not in state:
        state["pos_embed"] = torch.zeros(model.pos_embed.shape)
        account.fresh["pos_embed"] = "zeros: the weights have no absolute positions"
    _check(state, model, weights.origin)
    account.check_complete()
    return {name: value.to(torch.float32, copy=True) for name, value in state.items()}, account


def _shared_tables(table: Tensor, weights: Weights, model: WindowedBackbone, account: Account) -> dict[str, Tensor]:
    shared = {"windowed_rel_pos_bias": model.windowed_rel_pos_bias, "global_rel_pos_bias": model.global_rel_pos_bias}
    extents = {name: bias.extent for name, bias in shared.items() if bias is not None}
    rows = " and ".join(str(num_distances(extent)) for extent in extents.values())
    account.note(
        weights.keys[SHARED_TABLE],
        "resized",
        f"shared table to {rows} rows, bicubic, without the rows of the cls token",
    )
    return {f"{name}.{TABLE}": resize_plainly(table, weights.grid, extent) for name, extent in extents.items()}


class Refitted(NamedTuple):
    """A tensor for another model than the one that has learned it."""

    value: Tensor
    source: str  # the name that it has there
    fate: Fate
    rule: str


def refit_windowed(trained: WindowedBackbone, model: WindowedBackbone) -> dict[str, Refitted]:
    """The tensors of `model`, by its names, that a trained backbone has in another form; others are taken as they are.

    They are positions and tables of other sizes, and tables of blocks where the trained one has two for all of them.
    Tables are resized as those of pretrained weights. Two tables for all blocks cannot be made of a table per block.
    """
    state, found = trained.state_dict(), dict[str, Refitted]()
    for name in (name for name in model.state_dict() if name.endswith(TABLE) or name == "pos_embed"):
        old, new = _extent(name, trained), _extent(name, model)
        source = name if name in state else _shared_name(name, model)
        if source == name and old == new:
            continue
        to_size = f", for {new[0]} x {new[1]} patches" * (old != new)
        fate: Fate = "converted" if old == new else "resized"
        if name == "pos_embed":
            value = resize_positions(F.pad(state[source], (0, 0, 1, 0)), old, new)[:, 1:]
            found[name] = Refitted(value, source, fate, f"positions{to_size}")
        elif name.startswith("blocks."):
            value = resize_table(F.pad(state[source], (0, 0, 0, NUM_CLS_ROWS)), old, new)[:-NUM_CLS_ROWS]
            copied = "" if source == name else ", copied to its blocks"
            found[name] = Refitted(value, source, fate, f"bias table{copied}{to_size}")
        else:
            value = resize_plainly(F.pad(state[source], (0, 0, 0, NUM_CLS_ROWS)), old, new)
            found[name] = Refitted(value, source, fate, f"shared table{to_size}, bicubic")
    return found


def _extent(name: str, backbone: WindowedBackbone) -> Extent:
    """The patches that a table or positions are for."""
    if name.startswith("blocks."):
        return backbone.extent_of(int(name.split(".")[1]))
    return backbone.window if name.startswith("windowed") else backbone.grid


def _shared_name(name: str, model: WindowedBackbone) -> str:
    """The table for all blocks that stands for that of a block."""
    return f"{'global' if model.is_global[int(name.split('.')[1])] else 'windowed'}_rel_pos_bias.{TABLE}"


def _check(state: dict[str, Tensor], model: WindowedBackbone, origin: str) -> None:
    """Raises WeightsError with every tensor of the model that is missing, too much or of another size."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    wrong = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    told = (("lacks", missing), ("has too much:", surplus), ("has other sizes:", wrong))
    if complaints := [f"it {verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{origin}' does not fit the backbone of detection: {'; '.join(complaints)}")
