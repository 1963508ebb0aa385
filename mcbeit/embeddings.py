"""Embeddings in a file, and what they are: read back by anyone, whatever the format."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import ValidationError

from mcbeit.config import Config
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import EmbeddingError

FORMATS = (".npy", ".parquet", ".csv", ".safetensors")
METADATA = "mcbeit"  # the key of a description in a file's own metadata
TENSOR = "embeddings"  # of a safetensors file
COLUMN = "embedding"  # of a parquet file
What = Literal["embedding", "patch features"]  # a row is
Unreadables = Literal["drop", "empty"]  # what becomes of images that cannot be read
KEYS = ("id", "path", "label")  # of a csv file, before the numbers; the label only where there is one


class Description(Config):
    """What the rows of a file are."""

    kind: Literal["mcbeit-embeddings"] = "mcbeit-embeddings"
    version: Literal[1] = 1
    what: What
    num_rows: int
    row_shape: tuple[int, ...]
    spec: EncoderSpec
    place: str | list[str]  # of the images, as it was named
    source: dict[str, Any]  # how many images there are, and a hash of their names
    num_unreadable: int
    unreadable: Unreadables  # whether they have no row, or one of nan (parquet: null)
    classes: list[str] | None  # the names of labels


class Block(NamedTuple):
    """Some rows on their way into a file."""

    ids: list[str]
    paths: list[str]
    labels: Int64[np.ndarray, " row"] | None
    rows: Float32[np.ndarray, "row ..."]  # nan where there is none
    is_there: Bool[np.ndarray, " row"]


@dataclass(frozen=True)
class Embeddings:
    """Vectors with the names of their images, in the order of the source."""

    ids: list[str]  # the path below the folder that was named; of other sources the path
    paths: list[str]
    vectors: Float32[np.ndarray, "row dim"]  # of a .npy file memory-mapped; rows of nan: images that cannot be read
    spec: EncoderSpec  # what they are; those of other fingerprints may not be compared with them
    labels: Int64[np.ndarray, " row"] | None = None
    classes: list[str] | None = None


def companion(path: Path, suffix: str) -> Path:
    """A file beside a file of embeddings: .json describes it, .ids.csv names its rows, .unreadable.txt lists images."""
    return path.with_name(path.name + suffix)


def companions(path: Path) -> list[Path]:
    """The files beside a file of embeddings that it cannot be read without."""
    suffixes = {".npy": (".json", ".ids.csv"), ".csv": (".json",), ".safetensors": (".ids.csv",)}
    return [companion(path, suffix) for suffix in suffixes.get(path.suffix, ())]


def load_embeddings(path: str | Path) -> Embeddings:
    """Read what `mcbeit embed` wrote, in any of its formats.

    Raises EmbeddingError if it is not there, is damaged, or holds something else, patch features too.
    """
    path = Path(path).expanduser()
    description = describe(path)
    if description.what != "embedding":
        raise EmbeddingError(
            f"'{path}' holds {description.what}, one vector per patch; make embeddings: mcbeit embed without --patches"
        )
    try:
        keys, vectors = _read_rows(path)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise EmbeddingError(f"'{path}' cannot be read: {error}; make it again with mcbeit embed") from error
    if not len(keys) == len(vectors) == description.num_rows:
        raise EmbeddingError(
            f"'{path}' has {len(vectors)} vectors and {len(keys)} names of images, and should have "
            f"{description.num_rows} of both; a file beside it is of another one: make it again with mcbeit embed"
        )
    ids, paths, labels = keys.columns()
    return Embeddings(ids, paths, vectors, description.spec, labels, description.classes)


def describe(path: Path) -> Description:
    """What a file of embeddings holds. Raises EmbeddingError if it is none."""
    if path.suffix not in FORMATS:
        raise EmbeddingError(f"'{path}' is no file of embeddings; those end in {', '.join(FORMATS)}")
    for file in (path, *companions(path)):
        if not file.is_file():
            what = f"; '{path.name}' cannot be used without it" if file != path else ""
            raise EmbeddingError(f"there is no '{file}'{what}; make it: mcbeit embed MODEL SOURCE -o {path}")
    try:
        return Description.model_validate_json(_read_metadata(path))
    except (OSError, ValueError, KeyError) as error:
        reason = "its description is not that of embeddings" if isinstance(error, ValidationError) else str(error)
        raise EmbeddingError(f"'{path}' was not written by mcbeit embed, or is damaged: {reason}") from error


class Keys:
    """The names of rows, as they are read."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._paths: list[str] = []
        self._labels: list[int] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, image: str, path: str, *label: str | int) -> None:
        """One more row."""
        self._ids.append(image)
        self._paths.append(path)
        self._labels += map(int, label)

    def columns(self) -> tuple[list[str], list[str], np.ndarray | None]:
        """All ids, all paths, and all labels if there are any."""
        return self._ids, self._paths, np.array(self._labels, np.int64) if self._labels else None


def _read_metadata(path: Path) -> str | bytes:
    if path.suffix == ".parquet":
        from mcbeit.embedding_parquet import read_metadata

        return read_metadata(path)
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as file:
            return str((file.metadata() or {})[METADATA])
    return companion(path, ".json").read_bytes()


def _read_rows(path: Path) -> tuple[Keys, np.ndarray]:
    if path.suffix == ".parquet":
        from mcbeit.embedding_parquet import read_rows

        return read_rows(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    keys = Keys()
    for names, _ in _csv_rows(companion(path, ".ids.csv")):
        keys.add(*names)
    if path.suffix == ".npy":
        return keys, np.load(path, mmap_mode="r")
    with _open_safetensors(path) as file:
        return keys, file.get_tensor(TENSOR)


def _read_csv(path: Path) -> tuple[Keys, np.ndarray]:
    keys, vectors = Keys(), []
    for names, numbers in _csv_rows(path):
        keys.add(*names)
        vectors.append(np.array([number or "nan" for number in numbers], np.float32))
    return keys, np.stack(vectors)


def _csv_rows(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        num_keys = sum(name in KEYS for name in next(rows, []))
        for row in rows:
            yield row[:num_keys], row[num_keys:]


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(str(error)) from error
