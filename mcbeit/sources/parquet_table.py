"""What a parquet file says about itself - its rows, images and labels - and its row groups, by pyarrow."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcbeit.errors import DataError
from mcbeit.sources import location
from mcbeit.sources.location import Stamp

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LABEL_COLUMNS = ("label", "labels", "class", "cls", "target")  # where no schema tells
OPEN_FILES = 128  # footers that a process keeps


@dataclass
class Table:
    """One parquet file. `reason` says why it cannot be read; then it has no rows."""

    name: str
    stamp: Stamp
    column: str = ""  # of images
    group_rows: list[int] = field(default_factory=list)
    num_bytes: int = 0  # of the images, compressed
    labels: list[int | str | None] = field(default_factory=list)
    class_names: list[str] | None = None
    reason: str | None = None

    @property
    def num_rows(self) -> int:
        """In all row groups."""
        return sum(self.group_rows)


class Rows:
    """The images of one row group."""

    def __init__(self, column: "pa.ChunkedArray") -> None:
        self._column = column
        self.num_bytes = int(column.nbytes)

    def image(self, row: int) -> bytes | str | None:
        """The encoded image; or, where the row holds none, the path that it names."""
        value = self._column[row].as_py()
        if not isinstance(value, dict):
            return value
        return value["bytes"] if value["bytes"] is not None else value.get("path")


def describe_table(name: str) -> Table:
    """Read the footer and the labels of a parquet file.

    Raises DataError if it is not there or has no column of images; a broken file has a `reason`.
    """
    try:
        table = Table(name, location.stamp_of(name))
    except FileNotFoundError as error:
        raise DataError(f"there is no parquet file '{name}'") from error
    except OSError as error:
        return Table(name, Stamp(0, 0), reason=_reason(error))
    try:
        file = _open(name, table.stamp, os.getpid())
        schema, footer = file.schema_arrow, file.metadata
        features = _features(schema)
        table.column = _image_column(schema, features, name)
        label = _label_column(schema, features)
        num_rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        table.num_bytes = _column_bytes(footer, table.column)
        if label is not None:
            table.labels = file.read([label], use_threads=False).column(0).to_pylist()
            table.class_names = features.get(label, {}).get("names")
        else:
            table.labels = [None] * sum(num_rows)
        table.group_rows = num_rows
    except DataError:
        raise
    except Exception as error:  # pyarrow has errors of many kinds for bytes from anywhere
        table.reason = _reason(error)
    return table


def read_rows(name: str, stamp: Stamp, group: int, column: str) -> Rows:
    """The images of a row group. Raises OSError if it cannot be read."""
    try:
        table = _open(name, stamp, os.getpid()).read_row_group(group, columns=[column], use_threads=False)
    except DataError:
        raise
    except Exception as error:
        raise OSError(f"row group {group} cannot be read: {_reason(error)}") from error
    return Rows(table.column(0))


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(name: str, stamp: Stamp, process: int) -> "pq.ParquetFile":
    """An open file, for one process. Raises DataError without pyarrow, OSError if the file has changed."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"reading '{name}' needs pyarrow: pip install 'mcbeit[data]'") from error
    if location.stamp_of(name) != stamp:
        raise OSError(f"'{name}' has changed since it was opened")
    if location.is_url(name):
        return pq.ParquetFile(location.open_file(name), pre_buffer=True)
    return pq.ParquetFile(name)


def _features(schema: "pa.Schema") -> dict[str, Any]:
    """The columns as Hugging Face's `datasets` describes them; empty if another program wrote the file."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def _image_column(schema: "pa.Schema", features: dict[str, Any], name: str) -> str:
    found = [column for column, kind in features.items() if kind.get("_type") == "Image" and column in schema.names]
    found = found or [one.name for one in schema if _has_bytes(one.type)]
    found = found or [one.name for one in schema if _is_binary(one.type)]
    if len(found) == 1 or "image" in found:
        return "image" if "image" in found else found[0]
    have = ", ".join(f"{one.name}: {one.type}" for one in schema)
    what = f"several columns of images ({', '.join(found)})" if found else f"no column of images (found {have})"
    raise DataError(f"'{name}' has {what}; have one, of the type struct<bytes, path> or binary, and call it image")


def _label_column(schema: "pa.Schema", features: dict[str, Any]) -> str | None:
    import pyarrow.types as types

    found: Sequence[str] = [column for column, kind in features.items() if kind.get("_type") == "ClassLabel"]
    if not found:
        kinds = {one.name: one.type for one in schema if types.is_integer(one.type) or types.is_string(one.type)}
        found = [column for column in LABEL_COLUMNS if column in kinds]
    return "label" if "label" in found else found[0] if len(found) == 1 else None


def _has_bytes(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind)


def _is_binary(kind: "pa.DataType") -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _column_bytes(footer: "pq.FileMetaData", column: str) -> int:
    """The stored size of a column with all that is in it."""
    total = 0
    for group in range(footer.num_row_groups):
        row_group = footer.row_group(group)
        for number in range(row_group.num_columns):
            chunk = row_group.column(number)
            if chunk.path_in_schema.split(".")[0] == column:
                total += chunk.total_compressed_size
    return total


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
