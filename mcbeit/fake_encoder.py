"""An encoder without a model: for tests, for trying the service out, for measuring everything but the model."""

import hashlib

import numpy as np

from mcbeit.encoder import EncoderConfig, EncoderSpec, PixelEncoder, Pixels
from mcbeit.errors import EncoderError
from mcbeit.preprocess import Preprocess

SEED = 0
PATCH_SIZE = 16
IMAGE_SIZE = 64  # pixels, unless another is asked for
CHOICES = ("image_size", "normalize")  # of an EncoderConfig: there are no tokens to choose from


class FakeEncoder(PixelEncoder):
    """The mean colour and the deviation of each cell, seen through fixed random directions.

    Deterministic, and images that look alike have similar vectors; good for nothing else.
    """

    def __init__(self, *, dim: int = 64, image_size: int = IMAGE_SIZE, normalize: bool = True) -> None:
        preprocess = Preprocess(image_size=image_size)
        side = image_size // PATCH_SIZE or 1
        rng = np.random.default_rng(SEED)
        self._patches = rng.standard_normal((6, dim)).astype(np.float32)
        self._pool = rng.standard_normal((side * side, dim)).astype(np.float32)
        told = f"fake-{dim}-{preprocess.model_dump_json()}"
        self.spec = EncoderSpec(
            name="fake",
            fingerprint=hashlib.sha256(told.encode()).hexdigest(),
            dim=dim,
            pooling="mean",
            layer=1,
            num_layers=1,
            final_norm=False,
            normalize=normalize,
            grid=(side, side),
            patch_dim=dim,
            preprocess=preprocess,
        )

    @classmethod
    def of(cls, config: EncoderConfig) -> "FakeEncoder":
        """The one that `fake` names as a model. Raises EncoderError for choices that need a model."""
        if others := sorted(config.model_fields_set - set(CHOICES)):
            raise EncoderError(f"{', '.join(others)}: the fake encoder has no model; it takes {' and '.join(CHOICES)}")
        return cls(image_size=config.image_size or IMAGE_SIZE, normalize=config.normalize)

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        rows, columns = self.spec.grid
        size = pixels.shape[1] // rows
        cells = pixels[:, : rows * size, : columns * size].reshape(len(pixels), rows, size, columns, size, 3)
        values = cells.astype(np.float32) / 255
        numbers = np.concatenate([values.mean(axis=(2, 4)) - 0.5, values.std(axis=(2, 4))], axis=-1)
        features = numbers @ self._patches
        return features if patches else (features.reshape(len(pixels), rows * columns, -1) * self._pool).mean(axis=1)
