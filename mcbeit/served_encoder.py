"""The encoder of a service: `load_encoder("http://127.0.0.1:8000")`, or `http://...#NAME` for one of several models."""

import os
from collections.abc import Sequence
from urllib.parse import urldefrag

import numpy as np

from mcbeit.encoder import EncoderConfig, ImageInput, PatchFeatures, PixelEncoder, Pixels, Vectors
from mcbeit.errors import EncoderError, ImageError, ServiceError

KEY_VARIABLE = "MCBEIT_API_KEY"
REFUSED_IMAGES = {400, 413, 415, 422}  # statuses that speak of an image


class ServedEncoder(PixelEncoder):
    """Images are sent as they are, and read by the service; `compute` sends pixels.

    The key for the service comes from MCBEIT_API_KEY. Raises ServiceError if it cannot be reached, ImageError for an
    image that it refuses, as the encoders of this machine do.
    """

    def __init__(self, address: str, config: EncoderConfig | None = None) -> None:
        from mcbeit.http_client import Client  # which takes its time to load

        config = config or EncoderConfig()
        if others := sorted(config.model_fields_set - {"normalize"}):
            raise EncoderError(
                f"{', '.join(others)}: chosen when the served model was exported; a service takes normalize"
            )
        self.address, name = urldefrag(address)
        self.client = Client(self.address, api_key=os.environ.get(KEY_VARIABLE), model=name or None)
        spec = self.client.spec
        normalize = config.normalize if "normalize" in config.model_fields_set else spec.normalize
        self.spec = spec.model_copy(update={"normalize": normalize})

    def embed(self, images: Sequence[ImageInput]) -> Vectors:
        """See `Encoder`."""
        try:
            return self.client.embed(images, normalize=self.spec.normalize)
        except ServiceError as error:
            raise _of_image(error) from error

    def patch_features(self, images: Sequence[ImageInput]) -> PatchFeatures:
        """See `Encoder`."""
        try:
            return self.client.patch_features(images)
        except ServiceError as error:
            raise _of_image(error) from error

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """See `PixelEncoder`."""
        found = self.client.of_pixels(pixels, patches=patches)
        return found.reshape(len(pixels), *self.spec.grid, -1) if patches else found


def _of_image(error: ServiceError) -> ImageError | ServiceError:
    return ImageError(str(error)) if error.status in REFUSED_IMAGES else error
