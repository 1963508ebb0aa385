"""A cheap semantic vocabulary: k-means over the features that a convolutional network of timm has at one stride."""

import difflib
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.errors import ConfigError
from mcbeit.tokenizer import Normalisation, Tokenizer, distance_logits, flatten_cells


class KMeansConfig(Config):
    """What the codes are the centres of."""

    network: str = "tf_efficientnet_lite0"  # of timm, one that gives features of several strides
    stride: int = Field(16, ge=1)  # pixels per code and side; the network must have features of it
    vocab_size: int = Field(512, ge=2)
    distance: Literal["cosine", "euclidean"] = "cosine"  # between features that were standardised per channel
    mean: tuple[float, float, float] | None = None  # of pixels in [0, 1]; None: as timm's weights want it
    std: tuple[float, float, float] | None = None


class KMeansTokenizer(Tokenizer):
    """A frozen network, its features standardised per channel, and their centres.

    With the cosine, features and centres have unit length, so squared distances lie in [0, 4].
    """

    center: Tensor
    scale: Tensor
    codebook: Tensor
    interpolation = "bicubic"

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.stride = config.vocab_size, config.stride
        self.network, dim = make_network(config)
        mean, std = timm_normalisation(config.network)
        self.mean, self.std = config.mean or mean, config.std or std
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("codebook", torch.zeros(config.vocab_size, dim))

    def code_logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch code"]:
        """Minus the squared distance to each centre."""
        return distance_logits(self.standardise(self.features(images)), self.codebook)

    def features(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch dim"]:
        """What the network sees in each cell, not standardised. Raises ConfigError if its cells are others."""
        (found,) = self.network(images)
        wanted = [side // self.stride for side in images.shape[2:]]
        if list(found.shape[2:]) != wanted:
            raise ConfigError(
                f"model.network={self.config.network} gives features of shape {list(found.shape[1:])} for images of "
                f"{list(images.shape[2:])} px, not a grid of {wanted}; take a convolutional network"
            )
        return flatten_cells(found)

    def standardise(self, features: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Zero mean and unit deviation per channel over the images of the fit; with the cosine also unit length."""
        return self.normalised((features.float() - self.center.float()) / self.scale.float())

    def normalised(self, vectors: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Unit length, where only directions count."""
        return F.normalize(vectors, dim=-1) if self.config.distance == "cosine" else vectors


def make_network(config: KMeansConfig) -> tuple[nn.Module, int]:
    """The network up to the stride, untrained, and the width of its features.

    Raises ConfigError if timm has no such network, or the network no such stride.
    """
    if config.network not in timm.list_models():
        close = difflib.get_close_matches(config.network, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"model.network={config.network} is no network of timm{hint}")
    try:
        with torch.device("meta"):
            info: Any = timm.create_model(config.network, features_only=True).feature_info
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise ConfigError(f"model.network={config.network} gives no features of several strides: {error}") from error
    strides = info.reduction()
    if config.stride not in strides:
        raise ConfigError(
            f"model.network={config.network} has no features of stride {config.stride}; model.stride can be "
            f"{', '.join(map(str, sorted(set(strides))))}"
        )
    index = len(strides) - 1 - strides[::-1].index(config.stride)
    return timm.create_model(config.network, features_only=True, out_indices=(index,)), info.channels()[index]


def timm_normalisation(network: str) -> tuple[Normalisation, Normalisation]:
    """Mean and deviation of the images that timm's own weights of a network want."""
    values = timm.get_pretrained_cfg(network)
    if values is None:
        return Tokenizer.mean, Tokenizer.std
    (red, green, blue), (red_std, green_std, blue_std) = values.mean, values.std
    return (red, green, blue), (red_std, green_std, blue_std)
