"""From weights to a backbone of a given config and image size, with an account of every key.

loaded = load_backbone("checkpoint-799.pth")    # or a run folder, a .safetensors file, timm:NAME
print(loaded.account.summary())
tokens = loaded.model.forward_tokens(images)
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.weight_account import Account, some
from mcbeit.weight_architecture import model_shapes
from mcbeit.weights import HEADS, INDEX, Weights, read_weights

IGNORED = {  # what a backbone may have no use for
    **HEADS,
    **dict.fromkeys(("fc_norm.weight", "fc_norm.bias"), "norm of pooled tokens, where this model norms every token"),
    **dict.fromkeys(("norm.weight", "norm.bias"), "norm of every token, where this model norms pooled ones"),
}


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with trained weights, in evaluation mode, and what is known of it."""

    model: VisionTransformer
    config: ModelConfig
    image_size: int  # pixels
    channels: int  # of its images; 3 are colours
    preprocess: Preprocess | None  # what it was trained on, at its own size; None: the file does not tell
    account: Account


def load_backbone(
    source: str | Path,
    *,
    image_size: int | None = None,
    config: ModelConfig | None = None,
    num_heads: int | None = None,
) -> LoadedBackbone:
    """The backbone of a source in evaluation mode, in float32, at its own image size or at another one.

    `config` is the model that the weights should fit, by default their own. Raises WeightsError as `read_weights` and
    `fit_backbone` do.
    """
    weights = read_weights(source, num_heads=num_heads)
    config, image_size = config or weights.model, image_size or weights.image_size
    state, account = fit_backbone(weights, config, image_size)
    model = hollow_backbone(config, image_size, weights.channels)
    model.load_state_dict(state, assign=True)
    return LoadedBackbone(model.eval(), config, image_size, weights.channels, weights.preprocess, account)


def fit_backbone(
    weights: Weights, config: ModelConfig, image_size: int, *, heads: Collection[str] = ()
) -> tuple[dict[str, Tensor], Account]:
    """The state dict of a backbone of `config`, in float32 and memory of its own, and the account of the keys.

    `heads` names tensors that the caller takes too, as lm_head.weight. Where the file has no mask token or the other
    kind of final norm, they start anew. Raises WeightsError with every tensor that the model has and the file has not,
    or the other way round.
    """
    weights, account = plan_backbone(weights, config, image_size, heads=heads)
    fresh = {name: value for name, (value, _) in _fresh(config.shape[0]).items() if name in account.fresh}
    taken = [name for name, key in weights.keys.items() if account.entries[key].fate != "ignored"]
    return {name: weights.tensors[name].to(torch.float32, copy=True) for name in taken} | fresh, account


def plan_backbone(
    weights: Weights, config: ModelConfig, image_size: int, *, heads: Collection[str] = ()
) -> tuple[Weights, Account]:
    """The weights with the tables and the size of a backbone, and what `fit_backbone` will make of every key."""
    weights = weights.with_tables(config.bias_tables).resized(image_size)
    account, shapes = copy.deepcopy(weights.account), model_shapes(config, image_size, weights.channels)
    for name, (_, why) in _fresh(config.shape[0]).items():
        if name in shapes and name not in weights.tensors:
            account.fresh[name] = why
    for name, value in weights.tensors.items():
        if name in shapes or name in heads:
            account.note(weights.keys[name], *casting(value))
        elif name in IGNORED:
            account.note(weights.keys[name], "ignored", IGNORED[name])
    _check_fits(weights, shapes, account)
    return weights, account


def casting(value: Tensor) -> tuple[Literal["loaded", "converted"], str]:
    """The fate of a tensor that is taken as it is but for its dtype, and why."""
    if value.dtype == torch.float32:
        return "loaded", ""
    return "converted", f"{str(value.dtype).removeprefix('torch.')} to float32"


def _fresh(dim: int) -> dict[str, tuple[Tensor, str]]:
    """What a file may lack: the value that it starts from, and why it may be missing."""
    zeros, ones = torch.zeros(dim), torch.ones(dim)
    other = "the file has no final norm of this kind"
    return {
        "mask_token": (torch.zeros(1, 1, dim), "the file has none, only masked images need it"),
        **{f"{norm}.weight": (ones.clone(), other) for norm in ("norm", "fc_norm")},
        **{f"{norm}.bias": (zeros.clone(), other) for norm in ("norm", "fc_norm")},
    }


def _check_fits(weights: Weights, shapes: Mapping[str, tuple[int, ...]], account: Account) -> None:
    tensors = weights.tensors
    missing = [name for name in shapes if name not in tensors and name not in account.fresh]
    surplus = [name for name in tensors if name not in shapes and name not in IGNORED]
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    told = (("lacks", missing), ("has too much:", surplus), ("has other sizes:", wrong))
    if complaints := [f"it {verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{weights.origin}' does not fit the model: {'; '.join(complaints)}")
    account.check_complete()


def hollow_backbone(config: ModelConfig, image_size: int, channels: int) -> VisionTransformer:
    """A backbone without numbers: drawing those of ViT-L, only to replace them, takes many seconds."""
    with torch.device("meta"):
        model = VisionTransformer(config, image_size=image_size, channels=channels)
    for module in model.modules():
        for name, like in list(module.named_buffers(recurse=False)):
            value = gen_relative_position_index(model.grid) if name == INDEX else torch.zeros(like.shape)
            module.register_buffer(name, value, persistent=False)
    return model
