"""Several vectors of an image from one pass: of some layers, by some poolings, with the final norm and without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from mcbeit.augment import normalise
from mcbeit.bodies import Body, Tokens
from mcbeit.body_loading import LoadedBody, load_body
from mcbeit.device import thread_limit
from mcbeit.encoder import EncoderConfig, Pixels, Pooling, derived_fingerprint
from mcbeit.errors import BenchError
from mcbeit.pooling import pool
from mcbeit.torch_encoder import TorchEncoder, build_model


class Column(NamedTuple):
    """One of the vectors."""

    layer: int  # counted from 1
    pooling: Pooling
    final_norm: bool

    def __str__(self) -> str:
        return f"layer {self.layer}, {self.pooling}{', final norm' if self.final_norm else ''}"


class SweepEncoder(TorchEncoder):
    """Its embedding is the vectors of all columns, one after the other; `spec` tells the model's own otherwise."""

    def __init__(self, loaded: LoadedBody, config: EncoderConfig, columns: Sequence[Column], **runtime: Any) -> None:
        model, spec = build_model(loaded, config)
        self.columns = tuple(columns)
        self._check(loaded)
        super().__init__(model, spec, **runtime)
        self.notes = loaded.notes
        size = spec.preprocess.image_size
        blank = np.zeros(
            (1, size, size, spec.preprocess.channels), np.uint8 if spec.preprocess.channels == 3 else np.float32
        )
        self.spec = spec.model_copy(
            update={
                "fingerprint": derived_fingerprint(spec.fingerprint, "; ".join(map(str, columns))),
                "dim": self.compute(blank).shape[1],
                "normalize": False,
            }
        )

    @classmethod
    def load(  # type: ignore[override] # columns are not a runtime option
        cls, source: str | Path, config: EncoderConfig | None, columns: Sequence[Column], **runtime: Any
    ) -> "SweepEncoder":
        """Open a model as `TorchEncoder.load` does."""
        config = config or EncoderConfig()
        return cls(load_body(source, config), config, columns, **runtime)

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        if patches:
            return super().compute(pixels, patches=True)
        return self.columns_of_images(torch.from_numpy(pixels).permute(0, 3, 1, 2)).flatten(1).cpu().numpy()

    @torch.no_grad()
    def columns_of_images(
        self, images: Shaped[Tensor, "batch channel height width"]
    ) -> Float32[Tensor, "batch column dim"]:
        """The vectors of images that are not normalised yet."""
        preprocess = self.spec.preprocess
        with self._precision.autocast(self.device), thread_limit(self.threads):
            inputs = normalise(images.to(self.device), preprocess.mean, preprocess.std)
            return columns_of(self.model.body, inputs, self.columns)

    def _check(self, loaded: LoadedBody) -> None:
        depth = loaded.body.num_layers
        if bad := [column for column in self.columns if not 1 <= column.layer <= depth]:
            raise BenchError(f"layer {bad[0].layer} is not there: {loaded.name} has layers 1 to {depth}")
        if any("cls" in column.pooling for column in self.columns) and not loaded.body.has_cls:
            raise BenchError(f"{loaded.name} has no cls token to pool; take mean or gem")


def columns_of(body: Body, images: Tensor, columns: Sequence[Column]) -> Tensor:
    """The vectors of a batch, float32 [image, column, dim]."""
    layers = sorted({column.layer for column in columns})
    plain = dict(zip(layers, body.tokens(images, layers, norm=False), strict=True))
    normed = {layer: body.normed(plain[layer]) for layer in {one.layer for one in columns if one.final_norm}}
    return torch.stack(
        [
            _pooled(
                (normed if one.final_norm else plain)[one.layer],
                one.pooling,
                body.pooled_norm if one.final_norm else nn.Identity(),
            )
            for one in columns
        ],
        dim=1,
    )


def _pooled(tokens: Tokens, pooling: Pooling, norm: nn.Module) -> Tensor:
    cls = None if tokens.cls is None else tokens.cls.float()
    return pool(pooling, tokens.patches.float(), cls, norm)


def split_columns(
    vectors: Float32[np.ndarray, "image width"], num_columns: int
) -> Float32[np.ndarray, "image column dim"]:
    """The vectors of an encoder of columns, each by itself."""
    return vectors.reshape(len(vectors), num_columns, -1)
