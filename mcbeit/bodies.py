"""A backbone as an encoder sees it: normalised images in, the tokens of some of its blocks out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from mcbeit.encoder import Pooling


class Tokens(NamedTuple):
    """What a block says of a batch."""

    cls: Float[Tensor, "batch dim"] | None  # None: the model has no cls token
    patches: Float[Tensor, "batch height width dim"]


class Body(nn.Module):
    """Any backbone. `pooled_norm` is a final norm that the model has for pooled tokens, not for each of them."""

    num_layers: int
    has_cls: bool
    default_pooling: Pooling
    pooled_norm: nn.Module

    def tokens(
        self, images: Float[Tensor, "batch channel height width"], layers: Sequence[int], *, norm: bool
    ) -> list[Tokens]:
        """The tokens after the blocks `layers`, counted from 1; `norm` applies the norm of every token."""
        raise NotImplementedError


class BeitBody(Body):
    """Our backbone, or any BEiT of timm."""

    has_cls = True

    def __init__(self, model: Beit) -> None:
        super().__init__()
        self.model = model
        self.num_layers = len(list(model.blocks))
        self.pooled_norm = model.fc_norm
        self.default_pooling = "mean"

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        height, width = self.model.patch_embed.grid_size
        return int(height), int(width)

    def embed(self, images: Tensor) -> Tensor:
        """The tokens before the first block, the cls token first."""
        patches = self.model.patch_embed(images)
        tokens = torch.cat([self.model.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens if self.model.pos_embed is None else tokens + self.model.pos_embed

    def tokens(self, images: Tensor, layers: Sequence[int], *, norm: bool) -> list[Tokens]:
        """See `Body`."""
        bias: Any = None if self.model.rel_pos_bias is None else self.model.rel_pos_bias()
        found, tokens = {}, self.embed(images)
        for number, block in enumerate(self.model.blocks, start=1):
            tokens = block(tokens, shared_rel_pos_bias=bias)
            if number in layers:
                found[number] = self.split(self.model.norm(tokens) if norm else tokens)
            if number == max(layers):
                break
        return [found[number] for number in layers]

    def split(self, tokens: Tensor) -> Tokens:
        """The cls token, and the patch tokens in their places."""
        return Tokens(tokens[:, 0], tokens[:, 1:].unflatten(1, self.grid))


class TimmBody(Body):
    """Any other transformer or convolutional network of timm; the layers of the latter are its stages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        prefix = getattr(model, "num_prefix_tokens", None)
        self.num_prefix = int(prefix or 0)
        self.is_transformer = prefix is not None
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.num_layers = len(self.model.feature_info)
        self.pooled_norm = getattr(model, "fc_norm", None) or nn.Identity()
        self.default_pooling = "cls" if self.has_cls and self.model.global_pool == "token" else "mean"

    def tokens(self, images: Tensor, layers: Sequence[int], *, norm: bool) -> list[Tokens]:
        """See `Body`."""
        if list(layers) == [self.num_layers] and (norm or not self.is_transformer):
            return [self._split(self.model.forward_features(images))]
        options = {"return_prefix_tokens": True} if self.num_prefix else {}
        found = self.model.forward_intermediates(
            images, indices=[number - 1 for number in layers], norm=norm, intermediates_only=True, **options
        )  # [batch, dim, height, width], in the order of the blocks
        order = sorted(set(layers))
        return [self._pair(found[order.index(number)]) for number in layers]

    def _pair(self, found: Any) -> Tokens:
        patches, prefix = found if self.num_prefix else (found, None)
        return Tokens(prefix[:, 0] if prefix is not None and self.has_cls else None, patches.permute(0, 2, 3, 1))

    def _split(self, features: Tensor) -> Tokens:
        """What `forward_features` gives: tokens, or a map with the channels in the second or in the last place."""
        if features.ndim == 3:
            patches = features[:, self.num_prefix :].unflatten(1, tuple(self.model.patch_embed.grid_size))
            return Tokens(features[:, 0] if self.has_cls else None, patches)
        is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return Tokens(None, features if is_last else features.permute(0, 2, 3, 1))
