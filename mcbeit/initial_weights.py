"""The weights that a run starts from, where its config names some as `init`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from mcbeit.checkpoint import CheckpointFolder
from mcbeit.classifier import Classifier
from mcbeit.errors import ConfigError
from mcbeit.file_hash import file_hash
from mcbeit.masked import MaskedImageModel
from mcbeit.preprocess import Preprocess
from mcbeit.vit import SIZES, ModelConfig, VisionTransformer
from mcbeit.weight_fitting import fit_backbone
from mcbeit.weights import SEGMENTER_PART, Weights, read_weights

SHAPE = ("dim", "depth", "num_heads")


def model_for(init: str | None, model: ModelConfig) -> ModelConfig:
    """The model with every key that it does not set taken from the weights `init`; as it is if it leaves none open.

    Raises ConfigError that names the keys that are set and do not agree with the weights, WeightsError if they cannot
    be read.
    """
    if init is None or model.model_fields_set >= set(ModelConfig.model_fields):
        return model
    return model_of(read_weights(init, num_heads=model.num_heads), model)


def model_of(weights: Weights, model: ModelConfig) -> ModelConfig:
    """`model_for` of weights that have been read."""
    found = completed(model, weights.model)
    check_agrees(found, weights)
    return found


def completed(model: ModelConfig, found: ModelConfig) -> ModelConfig:
    """The model with every key that it does not set taken from the one that was found."""
    taken = {key: value for key, value in _of_the_file(found, model).items() if key not in model.model_fields_set}
    return ModelConfig(**{**model.model_dump(), **taken})


def has_begun(run: Path) -> bool:
    """Whether a run has checkpoints of its own to go on from."""
    return bool(CheckpointFolder(run / "checkpoints").steps())


def check_init(init: str | None, run: Path, model: ModelConfig, channels: int) -> None:
    """Raise now what `start_from` would raise after other work; a run that goes on needs no weights."""
    if init is not None and not has_begun(run):
        weights = read_weights(init, num_heads=model.num_heads)
        check_agrees(model, weights)
        check_channels(channels, weights)


@runtime_checkable
class HasModel(Protocol):
    """What is known of weights."""

    @property
    def origin(self) -> str:
        """Where they are from."""
        ...

    @property
    def model(self) -> ModelConfig:
        """The backbone that they are of."""
        ...

    @property
    def channels(self) -> int:
        """Of its images."""
        ...


@runtime_checkable
class HasBackbone(Protocol):
    """A model around a backbone."""

    @property
    def backbone(self) -> VisionTransformer:
        """The part that weights are for."""
        ...


def start_from(init: str, model: HasBackbone, config: ModelConfig, preprocess: Preprocess) -> list[str]:
    """Give `model` the weights `init`: backbone, mask token and head, as far as the file has them.

    The head of a file counts if it has as many outputs. Positions are resized to the model's image size. Returns what
    a person should hear. Raises ConfigError if the model is another one than that of the weights, WeightsError if they
    cannot be read.
    """
    weights = read_weights(init, num_heads=config.num_heads)
    check_agrees(config, weights)
    check_channels(preprocess.channels, weights)
    head = head_of(model)
    parameters = dict(head.parameters()) if head is not None and head.fits(weights) else {}
    state, account = fit_backbone(weights, config, preprocess.image_size, heads=parameters)
    if "mask_token" in account.fresh:
        state["mask_token"] = model.backbone.mask_token.detach()  # drawn, not zero
    with torch.no_grad():
        for name, parameter in (*model.backbone.named_parameters(), *parameters.items()):
            parameter.copy_(state[name])
    return [
        f"starts from {place_of_weights(weights)}: {account.summary()}",
        *segmenter_notes(weights),
        *([] if head is None else [head.note(weights)]),
        *preprocess_notes(weights.preprocess, preprocess),
    ]


class Head(NamedTuple):
    """The layer after a backbone, and what people call it."""

    layer: nn.Linear
    key: str  # before the names of its tensors
    name: str
    outputs: str
    giver: str  # of the number of outputs

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """By their names in a file of weights."""
        return ((f"{self.key}.{name}", value) for name, value in self.layer.named_parameters())

    def fits(self, weights: Weights) -> bool:
        """Whether the weights have a head of this kind and size."""
        return self._outputs_of(weights) == self.layer.out_features

    def note(self, weights: Weights) -> str:
        """What becomes of the head of the weights."""
        count = self._outputs_of(weights)
        if count is None:
            return f"the {self.name} starts anew: the weights have none"
        if count != self.layer.out_features:
            counts = f"the weights have {count} {self.outputs}, the {self.giver} {self.layer.out_features}"
            return f"the {self.name} starts anew: {counts}"
        return f"the {self.name} of {count} {self.outputs} goes on, which is right for the same {self.giver} only"

    def _outputs_of(self, weights: Weights) -> int | None:
        bias = weights.tensors.get(f"{self.key}.bias")
        return None if bias is None else len(bias)


def head_of(model: HasBackbone) -> Head | None:
    """The head of a model, if it is one that files of weights have."""
    if isinstance(model, Classifier):
        return Head(model.head, "head", "classifier", "classes", "images")
    if isinstance(model, MaskedImageModel):
        return Head(model.lm_head, "lm_head", "vocabulary head", "codes", "tokenizer")
    return None


def check_agrees(config: ModelConfig, weights: HasModel, others: Iterable[str] = ()) -> None:
    """Raises ConfigError with every key of the config that is not that of the weights.

    `others` are lines like `difference` for keys beside those of the model.
    """
    if lines := [*_differences(config, weights.model), *others]:
        raise ConfigError(
            "\n".join(
                [
                    f"the model of the config is not that of init={weights.origin}:",
                    *lines,
                    "set these keys to what the weights have, or leave them out to have them taken from the weights",
                ]
            )
        )


def difference(key: str, wanted: Any, found: Any) -> str:
    """The line on a key in `check_agrees`."""
    return f"  {key}: {wanted} in the config, {found} in the weights"


def check_channels(channels: int, weights: HasModel) -> None:
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
            yield difference(f"model.{key}", f"{config.shape[i]}{by_size}", found.shape[i])
    for key, same in _kinds(config, found):
        if not same:
            yield difference(f"model.{key}", getattr(config, key), getattr(found, key))


def _kinds(config: ModelConfig, found: ModelConfig) -> Iterator[tuple[str, bool]]:
    """Of absolute positions the tensors do not tell how they began, of the layer scale only whether there is one."""
    absolute = {"relative+sincos": "relative+learned"}
    yield "mlp_ratio", config.mlp_ratio == found.mlp_ratio
    yield "patch_size", config.patch_size == found.patch_size
    yield "position", absolute.get(config.position, config.position) == absolute.get(found.position, found.position)
    yield "layer_scale", (config.layer_scale > 0) == (found.layer_scale > 0)


def segmenter_notes(weights: Weights) -> list[str]:
    """That the backbone alone is taken, if the weights are those of a segmenter."""
    num_others = sum(entry.rule == SEGMENTER_PART for entry in weights.account.entries.values())
    if not num_others:
        return []
    return [f"of the segmenter the backbone alone is taken: {num_others} keys are its pyramid and its heads"]


def preprocess_notes(old: Preprocess | None, new: Preprocess) -> list[str]:
    """What of the colours is not as the weights had it; None: that is not known."""
    return [
        f"preprocess.{key} is {list(getattr(new, key))}, the weights come from {list(getattr(old, key))}"
        for key in ("mean", "std")
        if old is not None and getattr(old, key) != getattr(new, key)
    ]


def place_with_hash(path: Path) -> str:
    """Which file it was, and its hash: a run folder has another newest checkpoint tomorrow."""
    return f"{path} (SHA-256 {file_hash(path)})"


def place_of_weights(weights: Weights) -> str:
    """`place_with_hash`, where they are those of a file."""
    return weights.origin if weights.path is None else place_with_hash(weights.path)
