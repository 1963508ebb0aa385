"""The hinge: images in, vectors out, whatever computes them.

    encoder = load_encoder("runs/demo")                 # or a model folder, weights, timm:NAME
    vectors = encoder.embed(["a.jpg", pil_image])       # float32 [2, dim]

Everything downstream - files of embeddings, indices, service, benchmark - asks an `Encoder` and keeps its `spec`, so
that vectors of different models never meet. This module does not load torch; what computes does.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image
from pydantic import Field

from mcbeit.config import Config, Seed, UserPath, override, validate
from mcbeit.errors import EncoderError, ImageError
from mcbeit.preprocess import Preprocess

BATCH_SIZE = 32  # images that are computed at once, unless the caller has smaller batches
TIMM = "timm:"
FAKE = "fake"
ADDRESS = ("http://", "https://")
KINDS = (
    "a folder that `mcbeit export` wrote, a run folder, a .safetensors file, a checkpoint of the official code (.pth) "
    "or timm:NAME, or the address of a service, http://HOST:PORT; fake is an encoder without a model, to try things out"
)
RUNTIME = {  # what may be said of how a kind of model is computed
    "an exported model": ("threads", "provider"),
    "a model in torch": ("threads", "device", "precision", "extra_layers"),
    "the fake encoder": (),
    "a service": (),
}

# an encoded file, a path, a picture, or uint8 [height, width, 3]
ImageInput = bytes | str | Path | Image.Image | np.ndarray
Pooling = Literal["mean", "cls", "cls+mean", "gem", "head"]  # head: as the head of a model of timm does
Precision = Literal["fp32", "fp16", "int8"]
Vectors = Float32[np.ndarray, "image dim"]
PatchFeatures = Float32[np.ndarray, "image height width dim"]
Pixels = Shaped[np.ndarray, "image size size channel"]


class EncoderSpec(Config):
    """What the vectors of an encoder are. Vectors may be compared if their fingerprints are the same."""

    name: str
    fingerprint: str  # SHA-256 over weights, preprocessing and what is made of the tokens
    dim: int = Field(ge=1)  # of an embedding
    pooling: Pooling
    layer: int = Field(ge=1)  # the block that the tokens come from, counted from 1
    num_layers: int = Field(ge=1)
    final_norm: bool  # whether the tokens have passed the model's final norm
    normalize: bool  # whether embeddings have unit length
    whitening: str | None = None  # SHA-256 of the whitening that the embedding has passed
    grid: tuple[int, int]  # of patch features: rows and columns
    patch_dim: int = Field(ge=1)
    precision: Precision = "fp32"
    preprocess: Preprocess

    @property
    def image_size(self) -> int:
        """Pixels, height and width of what the model sees."""
        return self.preprocess.image_size


class EncoderConfig(Config):
    """What to make of a model's tokens; what is left out is the model's own choice. See docs/embeddings.md."""

    image_size: int | None = Field(None, ge=1)  # pixels; positions are resized to it
    pooling: Pooling | None = None  # default: mean of the patch tokens; of timm's other models their own head's
    layer: int | None = Field(None, ge=1)  # the block whose tokens are taken, counted from 1; default: the last
    final_norm: bool = True  # apply the model's final norm, to an inner layer too
    normalize: bool = True  # to unit length
    whitening: UserPath | None = None  # a file that `mcbeit whiten` wrote
    jpeg_draft: bool = False  # let large JPEGs be decoded at a fraction of their size: faster, other numbers
    num_heads: int | None = Field(None, ge=1)  # attention heads, where a file of weights does not tell them
    weights: UserPath | None = None  # of timm:NAME: a file, packaged, or random; default: what timm has at hand
    seed: Seed = 0  # of random weights


@runtime_checkable
class Encoder(Protocol):
    """What turns images into vectors."""

    @property
    def spec(self) -> EncoderSpec:
        """What the vectors are."""
        ...

    def embed(self, images: Sequence[ImageInput]) -> Vectors:
        """A vector per image. Raises ImageError that names the first image that cannot be read."""
        ...

    def patch_features(self, images: Sequence[ImageInput]) -> PatchFeatures:
        """A vector per patch of each image, not normalised. Raises ImageError as `embed` does."""
        ...


class PixelEncoder(ABC):
    """An encoder on this machine: one way from images to pixels, `compute` from there."""

    spec: EncoderSpec
    notes: tuple[str, ...] = ()  # what a person should hear of the model, as what had to be assumed

    @abstractmethod
    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        """Pooled vectors, or patch features, of one batch of pixels that `preprocess` has made; float32, not scaled."""

    def embed(self, images: Sequence[ImageInput]) -> Vectors:
        """See `Encoder`."""
        found = [self.embed_pixels(pixels) for pixels in self._batches(images)]
        return np.concatenate(found) if found else np.zeros((0, self.spec.dim), np.float32)

    def patch_features(self, images: Sequence[ImageInput]) -> PatchFeatures:
        """See `Encoder`."""
        found = [self.compute(pixels, patches=True) for pixels in self._batches(images)]
        return np.concatenate(found) if found else np.zeros((0, *self.spec.grid, self.spec.patch_dim), np.float32)

    def embed_pixels(self, pixels: Pixels) -> Vectors:
        """The embeddings of one batch of preprocessed images."""
        vectors = self.compute(pixels)
        return unit_length(vectors) if self.spec.normalize else vectors

    def _batches(self, images: Sequence[ImageInput]) -> Iterator[Pixels]:
        for start in range(0, len(images), BATCH_SIZE):
            part = images[start : start + BATCH_SIZE]
            yield np.stack([self._pixels(image, start + i) for i, image in enumerate(part)])

    def _pixels(self, image: ImageInput, index: int) -> np.ndarray:
        try:
            return self.spec.preprocess.pixels(image)
        except ImageError as error:
            name = "" if isinstance(image, str | Path) else f"image {index}: "
            raise ImageError(f"{name}{error}") from error


def unit_length(vectors: Float32[np.ndarray, "*batch dim"]) -> Float32[np.ndarray, "*batch dim"]:
    """Each vector divided by its length; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def derived_fingerprint(base: str, change: str) -> str:
    """The fingerprint of what was made of an encoder in a way that changes its numbers."""
    return hashlib.sha256(f"{base} {change}".encode()).hexdigest()


def encoder_config(assignments: Sequence[str]) -> EncoderConfig:
    """The config of `key=value` assignments. Raises ConfigError."""
    return validate(EncoderConfig, override({}, assignments), origin="the encoder")


def load_encoder(source: str | Path, config: EncoderConfig | None = None, **runtime: Any) -> PixelEncoder:
    """The encoder of a model: see KINDS.

    An exported folder has made its choices: of `config` it takes `image_size` (one of its own) and `normalize` only.
    `runtime` says how it is computed: `threads` for all, `provider` for ONNX Runtime, `device` and `precision` for
    torch. Raises EncoderError, WeightsError or ConfigError.
    """
    config = config or EncoderConfig()
    if str(source).startswith(ADDRESS):
        from mcbeit.served_encoder import ServedEncoder

        _check_runtime("a service", runtime)
        return ServedEncoder(str(source), config)
    from mcbeit.model_folder import is_model_folder  # which keeps specs of encoders

    path = Path(source).expanduser()
    if str(source) == FAKE:
        from mcbeit.fake_encoder import FakeEncoder

        _check_runtime("the fake encoder", runtime)
        return FakeEncoder.of(config)
    if not str(source).startswith(TIMM) and is_model_folder(path):
        from mcbeit.onnx_encoder import OnnxEncoder

        _check_runtime("an exported model", runtime)
        return OnnxEncoder(path, config, **runtime)
    if not str(source).startswith(TIMM) and not path.exists():
        raise EncoderError(f"there is no model at '{source}'; name {KINDS}")
    from mcbeit.torch_encoder import TorchEncoder

    _check_runtime("a model in torch", runtime)
    return TorchEncoder.load(source, config, **runtime)


def _check_runtime(kind: str, runtime: Mapping[str, Any]) -> None:
    if others := [name for name in runtime if name not in RUNTIME[kind]]:
        takes = ", ".join(RUNTIME[kind]) or "none"
        raise EncoderError(
            f"{kind} is not computed by {', '.join(others)}; options of that sort that it takes: {takes}"
        )
