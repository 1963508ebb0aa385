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
    end: Tensor | None = None  # what the model's own head takes, of the last layer


class Body(nn.Module):
    """Any backbone. `pooled_norm` is a final norm that the model has for pooled tokens, not for each of them."""

    model: Any  # timm's or ours
    num_layers: int
    has_cls: bool
    norms_tokens: bool  # whether `normed` changes them
    default_pooling: Pooling
    pooled_norm: nn.Module

    def head(self, end: Tensor) -> Float[Tensor, "batch dim"]:
        """What the model itself makes of its last layer before it classifies."""
        raise NotImplementedError

    def tokens(
        self, images: Float[Tensor, "batch channel height width"], layers: Sequence[int], *, norm: bool
    ) -> list[Tokens]:
        """The tokens after the blocks `layers`, counted from 1; `norm` applies the norm of every token."""
        raise NotImplementedError

    def normed(self, tokens: Tokens) -> Tokens:
        """Tokens of `tokens(..., norm=False)` after the norm of every token; of networks without one as they are."""
        raise NotImplementedError


class BeitBody(Body):
    """Our backbone, or any BEiT of timm."""

    has_cls = True
    norms_tokens = True

    def __init__(self, model: Beit) -> None:
        super().__init__()
        self.model = model
        blocks: Any = model.blocks
        self.num_layers = len(blocks)
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
        tokens = torch.cat([self.model.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        positions: Any = self.model.pos_embed
        return tokens if positions is None else tokens + positions

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

    def normed(self, tokens: Tokens) -> Tokens:
        """See `Body`."""
        return _normed(tokens, self.model.norm)

    def split(self, tokens: Tensor) -> Tokens:
        """The cls token, and the patch tokens in their places."""
        return Tokens(tokens[:, 0], tokens[:, 1:].unflatten(1, self.grid))


class TimmBody(Body):
    """Any other transformer or convolutional network of timm; the layers of the latter are its stages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        prefix = getattr(model, "num_prefix_tokens", None)
        self.num_prefix = int(prefix or 0)
        self.is_transformer = self.norms_tokens = prefix is not None
        self.has_cls = getattr(model, "cls_token", None) is not None
        self.num_layers = len(self.model.feature_info)
        self.pooled_norm = getattr(model, "fc_norm", None) or nn.Identity()
        self.default_pooling = "head"

    def head(self, end: Tensor) -> Tensor:
        """See `Body`."""
        found: Tensor = self.model.forward_head(end, pre_logits=True)
        return found

    def tokens(self, images: Tensor, layers: Sequence[int], *, norm: bool) -> list[Tokens]:
        """See `Body`."""
        has_end = self.num_layers in layers and (norm or not self.is_transformer)  # as `forward_features` ends
        inner = sorted({number for number in layers if not (has_end and number == self.num_layers)})
        found: dict[int, Tokens] = {}
        if not inner:
            found[self.num_layers] = self._split(self.model.forward_features(images))
        else:
            options: dict[str, Any] = {"indices": [number - 1 for number in inner], "norm": norm}
            options |= {"return_prefix_tokens": True} if self.num_prefix else {}
            options |= {} if has_end else {"intermediates_only": True, "stop_early": True}
            given = self.model.forward_intermediates(images, **options)
            end, maps = given if has_end else (None, given)  # maps are [batch, dim, height, width]
            found = dict(zip(inner, map(self._pair, maps), strict=True))
            if end is not None:
                found[self.num_layers] = self._split(end)
        return [found[number] for number in layers]

    def normed(self, tokens: Tokens) -> Tokens:
        """See `Body`."""
        return _normed(tokens, self.model.norm) if self.is_transformer else tokens

    def _pair(self, found: Any) -> Tokens:
        patches, prefix = found if self.num_prefix else (found, None)
        return Tokens(prefix[:, 0] if prefix is not None and self.has_cls else None, patches.permute(0, 2, 3, 1))

    def _split(self, features: Tensor) -> Tokens:
        """What `forward_features` gives: tokens, or a map with the channels in the second or in the last place."""
        if features.ndim == 3:
            patches = features[:, self.num_prefix :].unflatten(1, tuple(self.model.patch_embed.grid_size))
            return Tokens(features[:, 0] if self.has_cls else None, patches, features)
        is_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        return Tokens(None, features if is_last else features.permute(0, 2, 3, 1), features)


def _normed(tokens: Tokens, norm: nn.Module) -> Tokens:
    return Tokens(None if tokens.cls is None else norm(tokens.cls), norm(tokens.patches))
