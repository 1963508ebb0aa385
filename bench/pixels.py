"""Raw pixels as an encoder: the baseline that every table of features should be read beside."""

import hashlib

import numpy as np

from mcbeit.encoder import EncoderSpec, PixelEncoder, Pixels
from mcbeit.preprocess import Preprocess

PIXELS = "pixels"  # what it is called as a MODEL
SIZE = 32  # pixels: more are averaged away


class PixelsEncoder(PixelEncoder):
    """The whole image at `size` x `size`, values in [0, 1]; its patch features are one patch, the image."""

    def __init__(self, size: int | None = None) -> None:
        size = size or SIZE
        preprocess = Preprocess(image_size=size, resize="squash", crop_fraction=1.0)
        told = f"raw pixels {preprocess.model_dump_json()}"
        self.spec = EncoderSpec(
            name=f"raw pixels {size} x {size}",
            fingerprint=hashlib.sha256(told.encode()).hexdigest(),
            dim=size * size * 3,
            pooling="mean",
            layer=1,
            num_layers=1,
            final_norm=False,
            normalize=False,
            grid=(1, 1),
            patch_dim=size * size * 3,
            preprocess=preprocess,
        )

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
        return vectors.reshape(len(pixels), 1, 1, -1) if patches else vectors
