"""One exception class per kind of mistake; the command line turns each into one message and exit status 2."""

from typing import Any


class McbeitError(Exception):
    """The base of all errors that a user can mend. The message names the thing, what was found and what to do."""

    is_shared = False  # whether all workers of a group raise it together


class ConfigError(McbeitError):
    """A preset, a config file or a `key=value` override is wrong."""


class DataError(McbeitError):
    """An image source is missing, empty, mislabelled or has too many unreadable files."""


class ImageError(McbeitError):
    """One image cannot be decoded."""


class RunError(McbeitError):
    """A run folder, a checkpoint or the training itself is in a state that cannot go on."""


class WeightsError(McbeitError):
    """A file of weights cannot be read, or holds something else than was asked for."""


class EncoderError(McbeitError):
    """A model cannot be used as an encoder, or is asked for vectors that it does not have."""


class EmbeddingError(McbeitError):
    """A file of embeddings cannot be made, gone on with or read."""


class ExportError(McbeitError):
    """A model cannot be exported, or what was exported does not give the numbers of the model."""


class ParityError(ExportError):
    """A graph does not give the numbers of its model. `graph` holds what was measured."""

    def __init__(self, message: str, graph: Any) -> None:
        super().__init__(message)
        self.graph = graph


class VectorIndexError(McbeitError):
    """An index of embeddings cannot be built or read, or is asked with vectors of another model."""


class ServiceError(McbeitError):
    """A service cannot be reached, or refuses what it was asked. `status` is None without an answer."""

    def __init__(self, message: str, status: int | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class PictureError(McbeitError):
    """A picture of features cannot be drawn: of too few images, or of a place outside them."""


class BenchError(McbeitError):
    """A measurement is not possible with this model or these images, or a result of one cannot be used."""


class Interrupted(Exception):
    """A training has ended early because somebody asked for it, and what it had done is saved."""

    def __init__(self, message: str, signal: int | None = None) -> None:
        super().__init__(message, signal)
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])
