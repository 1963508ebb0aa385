"""The same weights in another layout: which names it has a place for, and what timm needs to be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from timm.models.beit import gen_relative_position_index
from torch import Tensor

from mcbeit.image_files import COLOURS
from mcbeit.vit import SIZES, ModelConfig
from mcbeit.weight_account import Account
from mcbeit.weight_architecture import BLOCK_TABLE, CLASSIFIER, SHARED_TABLE, VOCABULARY_HEAD, model_shapes
from mcbeit.weights import HEADS, INDEX, Layout, Weights

PREFIX = "backbone."  # before the names of a backbone in our own files, where heads stand beside it
NO_PLACE: dict[Layout, tuple[str, ...]] = {
    "mcbeit": (),
    "timm": ("mask_token", *VOCABULARY_HEAD),
    "official-pretrain": (*CLASSIFIER, "fc_norm.weight", "fc_norm.bias"),
    "official-finetune": ("mask_token", *VOCABULARY_HEAD),
}
EXPECTED: dict[Layout, tuple[str, ...]] = {
    "official-pretrain": ("mask_token", *VOCABULARY_HEAD),
    "official-finetune": CLASSIFIER,
}
TIMM_NAMES = {SIZES["base"]: "beit_base_patch16_224", SIZES["large"]: "beit_large_patch16_224"}


@dataclass(frozen=True)
class Arrangement:
    """Tensors as a layout has them, in its order."""

    tensors: dict[str, Tensor]
    left_out: list[str]  # names that the layout has no place for
    missing: list[str]  # names that a full file of the layout has, and these weights have not
    account: Account


class TimmCall(NamedTuple):
    """The arguments of `timm.create_model` for a model that the weights fit strictly."""

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"timm.create_model({self.name!r}{options})"


def arrange(weights: Weights, layout: Layout) -> Arrangement:
    """The tensors of a layout, in the dtype that they have.

    The official layouts hold index buffers too: they are computed anew, by the same rule. Raises WeightsError if tables
    that differ between blocks would have to become one.
    """
    if layout == "official-pretrain":
        weights = weights.with_tables("shared")
    elif layout == "official-finetune":
        weights = weights.with_tables("per-block")
    left_out = [name for name in weights.tensors if name in NO_PLACE[layout]]
    missing = [name for name in EXPECTED.get(layout, ()) if name not in weights.tensors]
    names = [*model_shapes(weights.model, weights.image_size, weights.channels), *VOCABULARY_HEAD, *CLASSIFIER]
    tensors = {name: weights.tensors[name] for name in names if name in weights.tensors and name not in left_out}
    if layout == "mcbeit":
        tensors = {name if name in HEADS else PREFIX + name: value for name, value in tensors.items()}
    elif layout != "timm":
        tensors = _with_indices(tensors, weights.grid)
    return Arrangement(tensors, left_out, missing, weights.account)


def timm_call(model: ModelConfig, image_size: int, num_classes: int | None, channels: int = COLOURS) -> TimmCall:
    """How timm builds the model: by the name of its size, or as a variation of its base model."""
    dim, depth, heads = model.shape
    name = TIMM_NAMES.get(model.shape, TIMM_NAMES[SIZES["base"]])
    usual = {
        "img_size": 224,
        "patch_size": 16,
        "in_chans": COLOURS,
        "num_classes": 1000,
        "global_pool": "avg",
        "mlp_ratio": 4.0,
    }
    usual |= {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "use_abs_pos_emb": False, "has_scale": True}
    wanted = {
        "img_size": image_size,
        "patch_size": model.patch_size,
        "in_chans": channels,
        "num_classes": num_classes or 0,
        "global_pool": "token" if model.final_norm == "tokens" else "avg",
        "mlp_ratio": model.mlp_ratio,
        "use_rel_pos_bias": model.is_relative and model.bias_tables == "per-block",
        "use_shared_rel_pos_bias": model.is_relative and model.bias_tables == "shared",
        "use_abs_pos_emb": model.position != "relative",
        "has_scale": model.layer_scale > 0,
    }
    options: dict[str, Any] = {key: value for key, value in wanted.items() if value != usual[key]}
    if options.pop("has_scale", True) is False:
        options["init_values"] = 0.0  # timm.create_model drops a None
    if model.shape not in TIMM_NAMES:
        options |= {"embed_dim": dim, "depth": depth, "num_heads": heads}
    return TimmCall(name, options)


def _with_indices(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Each bias table followed by the index buffer that the official code keeps beside it."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found[name] = value
        if name == SHARED_TABLE or name.endswith(BLOCK_TABLE):
            found[f"{name.rpartition('.')[0]}.{INDEX}"] = gen_relative_position_index(grid)
    return found
