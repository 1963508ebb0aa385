"""Continued pretraining: the weights that a run starts from, where its config names some as `init`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mcbeit.checkpoint import CheckpointFolder
from mcbeit.errors import ConfigError
from mcbeit.file_hash import file_hash
from mcbeit.masked import MaskedImageModel
from mcbeit.preprocess import Preprocess
from mcbeit.vit import SIZES, ModelConfig
from mcbeit.weight_architecture import VOCABULARY_HEAD
from mcbeit.weights import Weights, fit_backbone, read_weights

SHAPE = ("dim", "depth", "num_heads")


def model_for(init: str | None, model: ModelConfig) -> ModelConfig:
    """The model with every key that it does not set taken from the weights `init`; as it is if it leaves none open.

    Raises ConfigError that names the keys that are set and do not agree with the weights, WeightsError if they cannot
    be read.
    """
    if init is None or model.model_fields_set >= set(ModelConfig.model_fields):
        return model
    weights = read_weights(init, num_heads=model.num_heads)
    taken = {
        key: value for key, value in _of_the_file(weights.model, model).items() if key not in model.model_fields_set
    }
    found = ModelConfig(**{**model.model_dump(), **taken})
    check_agrees(found, weights)
    return found


def has_begun(run: Path) -> bool:
    """Whether a run has checkpoints of its own to go on from."""
    return bool(CheckpointFolder(run / "checkpoints").steps())


def check_init(init: str | None, run: Path, model: ModelConfig, channels: int) -> None:
    """Raise now what `start_from` would raise after a tokenizer was trained; a run that goes on needs no weights."""
    if init is not None and not has_begun(run):
        weights = read_weights(init, num_heads=model.num_heads)
        check_agrees(model, weights)
        check_channels(channels, weights)


def start_from(init: str, model: MaskedImageModel, config: ModelConfig, preprocess: Preprocess) -> list[str]:
    """Give `model` the weights `init`: backbone, mask token and vocabulary head, as far as the file has them.

    Positions are resized to the model's image size. Returns what a person should hear. Raises ConfigError if the model
    is another one than that of the weights, WeightsError if they cannot be read.
    """
    weights = read_weights(init, num_heads=config.num_heads)
    check_agrees(config, weights)
    check_channels(preprocess.channels, weights)
    has_head = weights.vocab_size == model.lm_head.out_features
    state, account = fit_backbone(weights, config, preprocess.image_size, heads=VOCABULARY_HEAD if has_head else ())
    if "mask_token" in account.fresh:
        state["mask_token"] = model.backbone.mask_token.detach()  # drawn, not zero
    with torch.no_grad():
        for name, parameter in (*model.backbone.named_parameters(), *_head(model, has_head)):
            parameter.copy_(state[name])
    return [
        f"starts from {_place(weights)}: {account.summary()}",
        _head_note(weights, model.lm_head.out_features),
        *_preprocess_notes(weights, preprocess),
    ]


def check_agrees(config: ModelConfig, weights: Weights) -> None:
    """Raises ConfigError with every key of the config that is not that of the weights."""
    if lines := list(_differences(config, weights.model)):
        raise ConfigError(
            "\n".join(
                [
                    f"the model of the config is not that of init={weights.origin}:",
                    *lines,
                    "set these keys to what the weights have, or leave them out to have them taken from the weights",
                ]
            )
        )


def check_channels(channels: int, weights: Weights) -> None:
    """Raises ConfigError if the weights are for images of another number of channels."""
    if channels != weights.channels:
        raise ConfigError(
            f"data.channels is {channels}, but init={weights.origin} was trained on images of {weights.channels} "
            "channels; start without init, or from weights of as many channels"
        )


def _of_the_file(found: ModelConfig, config: ModelConfig) -> dict[str, Any]:
    """What a config may take from weights: not the shape if it names a size, and never what only training needs."""
    kinds = {key: getattr(found, key) for key in ("mlp_ratio", "patch_size", "position", "bias_tables", "layer_scale")}
    if "size" in config.model_fields_set:
        return kinds
    size = next((name for name, shape in SIZES.items() if shape == found.shape), config.size)
    return {**kinds, "size": size, **dict(zip(SHAPE, found.shape, strict=True))}


def _differences(config: ModelConfig, found: ModelConfig) -> Iterator[str]:
    for i, key in enumerate(SHAPE):
        if config.shape[i] != found.shape[i]:
            by_size = f" (by model.size={config.size})" if getattr(config, key) is None else ""
            yield f"  model.{key}: {config.shape[i]}{by_size} in the config, {found.shape[i]} in the weights"
    for key, same in _kinds(config, found):
        if not same:
            yield f"  model.{key}: {getattr(config, key)} in the config, {getattr(found, key)} in the weights"


def _kinds(config: ModelConfig, found: ModelConfig) -> Iterator[tuple[str, bool]]:
    """Of absolute positions the tensors do not tell how they began, of the layer scale only whether there is one."""
    absolute = {"relative+sincos": "relative+learned"}
    yield "mlp_ratio", config.mlp_ratio == found.mlp_ratio
    yield "patch_size", config.patch_size == found.patch_size
    yield "position", absolute.get(config.position, config.position) == absolute.get(found.position, found.position)
    yield "layer_scale", (config.layer_scale > 0) == (found.layer_scale > 0)


def _place(weights: Weights) -> str:
    """Which file it was, and its hash: a run folder has another newest checkpoint tomorrow."""
    if weights.path is None:
        return weights.origin
    return f"{weights.path} (SHA-256 {file_hash(weights.path)})"


def _head(model: MaskedImageModel, taken: bool) -> list[tuple[str, nn.Parameter]]:
    return [(f"lm_head.{name}", value) for name, value in model.lm_head.named_parameters()] if taken else []


def _head_note(weights: Weights, vocab_size: int) -> str:
    if weights.vocab_size is None:
        return "the vocabulary head starts anew: the weights have none"
    if weights.vocab_size != vocab_size:
        return (
            f"the vocabulary head starts anew: the weights have {weights.vocab_size} codes, the tokenizer {vocab_size}"
        )
    return f"the vocabulary head of {vocab_size} codes goes on, which is right for the same tokenizer only"


def _preprocess_notes(weights: Weights, preprocess: Preprocess) -> list[str]:
    old = weights.preprocess
    return [
        f"preprocess.{key} is {list(getattr(preprocess, key))}, the weights come from {list(getattr(old, key))}"
        for key in ("mean", "std")
        if old is not None and getattr(old, key) != getattr(preprocess, key)
    ]
