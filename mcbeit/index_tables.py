"""An index as Arrow tables: a parquet file, or a LanceDB database. pyarrow and lancedb are imported when used."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcbeit.atomic import replacing, sync
from mcbeit.errors import VectorIndexError
from mcbeit.index import Index
from mcbeit.temporary import temporary_folder

if TYPE_CHECKING:
    import pyarrow as pa


def write_parquet(index: Index, out: Path) -> None:
    """Write one file; its schema carries the spec of the encoder. Raises VectorIndexError without pyarrow."""
    pa = _import_pyarrow()
    import pyarrow.parquet as pq

    schema = _schema(index, pa)
    with replacing(out) as partial, pq.ParquetWriter(partial, schema) as writer:
        for batch in _batches(index, schema, pa):
            writer.write_batch(batch)


def write_lancedb(index: Index, out: Path, table: str) -> None:
    """Write a database, a folder, with one table.

    Raises VectorIndexError without lancedb, or if `out` is there and is no database.
    """
    _check_is_database(out)
    pa = _import_pyarrow()
    try:
        import lancedb
    except ImportError as error:
        raise VectorIndexError(
            "writing a LanceDB database needs lancedb: pip install lancedb; or export to .parquet, which LanceDB reads"
        ) from error
    schema = _schema(index, pa)
    with temporary_folder("lancedb", out.absolute().parent) as folder:
        built = folder / "database"
        lancedb.connect(str(built)).create_table(table, data=_batches(index, schema, pa), schema=schema)
        sync(built)
        if out.exists():
            out.rename(folder / "old")
        built.rename(out)


def _check_is_database(out: Path) -> None:
    """Whatever is replaced is lost, so it has to be of the same kind."""
    if out.is_file():
        raise VectorIndexError(f"'{out}' is a file; a LanceDB database is a folder")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.suffix != ".lance") if out.exists() else []
    if foreign:
        raise VectorIndexError(f"'{out}' holds other things than tables of LanceDB, such as '{foreign[0]}'")


def _schema(index: Index, pa: Any) -> "pa.Schema":
    told = {"metric": "cosine", "encoder": index.spec.model_dump(mode="json")}
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), index.spec.dim), nullable=False),
            pa.field("path", pa.string()),
            pa.field("label", pa.string()),
            pa.field("metadata", pa.string()),  # JSON
        ],
        metadata={"mcbeit": json.dumps(told)},
    )


def _batches(index: Index, schema: "pa.Schema", pa: Any) -> Iterator["pa.RecordBatch"]:
    for items, vectors in index.contents():
        numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns = [
            pa.array([_plain(item.id) for item in items], pa.string()),
            pa.FixedSizeListArray.from_arrays(numbers, index.spec.dim),
            pa.array([_plain(item.path) for item in items], pa.string()),
            pa.array([_plain(item.label) for item in items], pa.string()),
            pa.array([None if item.metadata is None else json.dumps(item.metadata) for item in items], pa.string()),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _plain(text: str | None) -> str | None:
    """The text in UTF-8: what else a name of a file may hold is replaced."""
    return None if text is None else os.fsencode(text).decode(errors="replace")


def _import_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise VectorIndexError("tables need pyarrow: pip install 'mcbeit[data]'") from error
    return pyarrow
