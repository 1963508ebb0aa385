"""What is to be embedded, and by what: all that a worker anywhere has to know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field

from mcbeit.config import override, validate
from mcbeit.data import DataConfig
from mcbeit.device import PrecisionName
from mcbeit.embeddings import Unreadables, What
from mcbeit.encoder import BATCH_SIZE, FAKE, EncoderConfig, PixelEncoder, load_encoder
from mcbeit.errors import EmbeddingError
from mcbeit.sources import ImageSource


class StreamConfig(EncoderConfig):
    """The encoder's choices, the images, and how it is computed."""

    data: DataConfig = DataConfig()  # its num_workers are threads that decode
    batch_size: int = Field(BATCH_SIZE, ge=1)  # images that are computed at once
    threads: int | None = Field(None, ge=1)  # of the encoder on the CPU
    precision: PrecisionName | None = None  # of products in torch; default: fp32
    provider: str | None = None  # of ONNX Runtime: cpu, cuda, ...


class EmbedConfig(StreamConfig):
    """What `key=value` of `mcbeit embed` may set."""

    unreadable: Unreadables = "drop"  # images that cannot be read have no row, or an empty one


S = TypeVar("S", bound=StreamConfig)


@dataclass(frozen=True)
class Task:
    """A model, a source, and what is wanted of them."""

    model: str
    config: StreamConfig
    patches: bool = False

    @property
    def what(self) -> What:
        """What a row is."""
        return "patch features" if self.patches else "embedding"

    def open_source(self) -> ImageSource:
        """The images. Raises DataError."""
        return self.config.data.open()

    def open_encoder(self, threads: int | None = None) -> PixelEncoder:
        """The encoder, on `threads` unless the config says more. Raises EncoderError, WeightsError or ConfigError."""
        return self.checked(load_encoder(self.model, self.encoder_config, **self.runtime(threads)))

    @property
    def encoder_config(self) -> EncoderConfig:
        """What the config says of the encoder."""
        chosen = self.config.model_fields_set & set(EncoderConfig.model_fields)
        return EncoderConfig.model_validate({name: getattr(self.config, name) for name in chosen})

    def checked(self, found: PixelEncoder) -> PixelEncoder:
        """The encoder, if it takes images of these channels. Raises EmbeddingError if not."""
        wanted = found.spec.preprocess.channels
        if wanted != self.config.data.channels:
            raise EmbeddingError(
                f"{found.spec.name} takes images of {wanted} channels, data.channels is {self.config.data.channels}; "
                f"set data.channels={wanted}, or take another model"
            )
        return found

    def runtime(self, threads: int | None = None) -> dict[str, Any]:
        """How the encoder is computed, as `load_encoder` takes it."""
        told = {name: getattr(self.config, name) for name in ("threads", "precision", "provider")}
        told = {name: value for name, value in told.items() if value is not None}
        return told if threads is None or self.model == FAKE else {"threads": threads, **told}


def task_config(config_class: type[S], place: str, assignments: Sequence[str]) -> S:
    """The config of a source with `key=value` assignments. Raises ConfigError with every mistake in them."""
    values = override({"data": {"source": place}}, assignments)
    return validate(config_class, values, origin="the command line")
