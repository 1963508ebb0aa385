"""From pixels to embedding as one torch module: what `TorchEncoder` runs, and what `mcbeit export` writes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mcbeit.augment import normalise
from mcbeit.bodies import Body, Tokens
from mcbeit.encoder import Pooling
from mcbeit.pooling import pool
from mcbeit.preprocess import Preprocess
from mcbeit.whitening import Whitening


class EmbeddingModel(nn.Module):
    """Normalise, run the backbone, pool, whiten. Vectors are not scaled to unit length."""

    whitening_mean: Tensor
    whitening_matrix: Tensor

    def __init__(
        self,
        body: Body,
        preprocess: Preprocess,
        *,
        pooling: Pooling,
        layer: int,
        final_norm: bool,
        whitening: Whitening | None = None,
        extra_layers: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.body, self.preprocess, self.pooling = body, preprocess, pooling
        self.layer, self.final_norm, self.extra_layers = layer, final_norm, tuple(extra_layers)
        self.pooled_norm = body.pooled_norm if final_norm else nn.Identity()
        self.is_whitened = whitening is not None
        if whitening is not None:
            self.register_buffer("whitening_mean", torch.from_numpy(whitening.mean), persistent=False)
            self.register_buffer("whitening_matrix", torch.from_numpy(whitening.matrix), persistent=False)

    def forward(self, pixels: Shaped[Tensor, "batch size size channel"]) -> tuple[Tensor, ...]:
        """embedding [batch, dim], patch tokens [batch, height, width, dim], then those of the extra layers."""
        main, *extra = self.tokens(pixels)
        return (self.embedding(main), main.patches, *(tokens.patches for tokens in extra))

    def embed(self, pixels: Shaped[Tensor, "batch size size channel"]) -> Float[Tensor, "batch dim"]:
        """The embedding alone."""
        return self.embedding(self.tokens(pixels)[0])

    def tokens(self, pixels: Tensor) -> list[Tokens]:
        """The tokens of `layer` and of the extra layers."""
        images = normalise(pixels.permute(0, 3, 1, 2), self.preprocess.mean, self.preprocess.std)
        return self.body.tokens(images, (self.layer, *self.extra_layers), norm=self.final_norm)

    def embedding(self, tokens: Tokens) -> Float[Tensor, "batch dim"]:
        """Pooled, normed and whitened, in float32."""
        if self.pooling == "head":
            assert tokens.end is not None
            vectors = self.body.head(tokens.end).float()
        else:
            cls = None if tokens.cls is None else tokens.cls.float()
            vectors = pool(self.pooling, tokens.patches.float(), cls, self.pooled_norm)
        return (vectors - self.whitening_mean) @ self.whitening_matrix if self.is_whitened else vectors
