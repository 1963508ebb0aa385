"""An index in the formats of others: parquet, points for Qdrant, SQL for pgvector, a LanceDB database.

Each holds id, vector (unit length), path, label, metadata and the fingerprint of the encoder.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from mcbeit.atomic import replacing
from mcbeit.errors import VectorIndexError
from mcbeit.index import Index
from mcbeit.index_items import Item
from mcbeit.index_tables import write_lancedb, write_parquet

ExportFormat = Literal["parquet", "qdrant", "pgvector", "lancedb"]

SUFFIXES: dict[str, ExportFormat] = {
    ".parquet": "parquet",
    ".jsonl": "qdrant",
    ".sql": "pgvector",
    ".lancedb": "lancedb",
}
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "mcbeit:index")  # of the ids of points; never to be changed
TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
MAX_PGVECTOR_HNSW = 2000  # dims that pgvector can index as `vector`
ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})  # of COPY's text format


def export_index(
    index: Index, out: Path, kind: ExportFormat | None = None, *, table: str = "embeddings", force: bool = False
) -> ExportFormat:
    """Write an index to `out` for another program; the format is told by `kind` or by the suffix of `out`.

    Raises VectorIndexError if neither tells, if `out` is there, or if a package is missing.
    """
    kind = kind or _kind_of(out)
    if not TABLE.fullmatch(table):
        raise VectorIndexError(f"'{table}' is no name of a table; use letters, digits and underscores, a letter first")
    if out.exists() and not force:
        raise VectorIndexError(f"'{out}' is there already; replace it with --force, or name another")
    if not out.absolute().parent.is_dir():
        raise VectorIndexError(f"there is no folder '{out.absolute().parent}' to write '{out.name}' to")
    if kind == "lancedb":
        write_lancedb(index, out, table)
    elif out.is_dir():
        raise VectorIndexError(f"'{out}' is a folder; name a file")
    elif kind == "parquet":
        write_parquet(index, out)
    else:
        write = _write_qdrant if kind == "qdrant" else _write_pgvector
        with replacing(out) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
            write(index, file, table)
    return kind


def point_id(identity: str) -> str:
    """The UUID of an id; Qdrant takes UUIDs and integers alone."""
    return str(uuid.uuid5(NAMESPACE, os.fsencode(identity).decode(errors="backslashreplace")))


def _kind_of(out: Path) -> ExportFormat:
    if out.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({kind})" for suffix, kind in SUFFIXES.items())
        raise VectorIndexError(f"'{out}' does not tell its format; end it in one of {known}, or say --to")
    return SUFFIXES[out.suffix]


def _write_qdrant(index: Index, file: IO[str], table: str) -> None:
    """A line per point, as the REST interface and `PointStruct` of the client take it; the collection is named then."""
    for item, vector in _rows(index):
        payload = {**_readable(item), "fingerprint": index.spec.fingerprint}
        point = {"id": point_id(item.id), "vector": _numbers(vector), "payload": payload}
        file.write(json.dumps(point, allow_nan=False, separators=(",", ":")) + "\n")


def _write_pgvector(index: Index, file: IO[str], table: str) -> None:
    """A script for psql: all of it happens, or nothing."""
    dim, spec = index.spec.dim, json.dumps(index.spec.model_dump(mode="json"))
    file.write(
        f"BEGIN;\nCREATE EXTENSION IF NOT EXISTS vector;\n"
        f'CREATE TABLE "{table}" (id text PRIMARY KEY, embedding vector({dim}) NOT NULL, path text, label text, '
        "metadata jsonb);\n"
        f"COMMENT ON TABLE \"{table}\" IS E'{_quoted(spec)}';\n"
        f'COPY "{table}" (id, embedding, path, label, metadata) FROM stdin;\n'
    )
    for item, vector in _rows(index):
        known = _readable(item)
        metadata = None if item.metadata is None else json.dumps(item.metadata)
        cells = [known["id"], f"[{','.join(map(str, _numbers(vector)))}]", known["path"], known["label"], metadata]
        file.write("\t".join(r"\N" if cell is None else cell.translate(ESCAPES) for cell in cells) + "\n")
    file.write("\\.\n")
    if dim <= MAX_PGVECTOR_HNSW:
        file.write(f'CREATE INDEX ON "{table}" USING hnsw (embedding vector_cosine_ops);\n')
    file.write("COMMIT;\n")


def _rows(index: Index) -> Iterator[tuple[Item, np.ndarray]]:
    for items, vectors in index.contents():
        yield from zip(items, vectors, strict=True)


def _readable(item: Item) -> dict[str, Any]:
    """The item in UTF-8: what else a name of a file may hold is replaced."""
    known = {"id": item.id, "path": item.path, "label": item.label}
    plain = {
        key: None if value is None else os.fsencode(value).decode(errors="replace") for key, value in known.items()
    }
    return {**plain, "metadata": item.metadata}


def _numbers(vector: np.ndarray) -> list[float]:
    """Floats whose shortest decimals give back the same float32."""
    return [float(text) for text in map(str, vector)]


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace("'", "''")
