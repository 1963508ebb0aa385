"""Embeddings in a parquet file, by pyarrow: id, path, label, and the numbers as one list of fixed size per row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mcbeit.embeddings import COLUMN, METADATA, Block, Description, Keys
from mcbeit.errors import EmbeddingError

GROUP_BYTES = 32 * 2**20  # of the numbers in a row group


def require_pyarrow(path: Path) -> None:
    """Raise EmbeddingError if it is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401 - whether it can be
    except ImportError as error:
        raise EmbeddingError(f"'{path}' needs pyarrow: pip install 'mcbeit[data]', or choose .npy") from error


@contextmanager
def writer(path: Path, description: Description) -> Iterator[Callable[[Block], None]]:
    """What writes blocks; row groups hold several of them. Patch features are flat: `row_shape` tells their shape."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = int(np.prod(description.row_shape))
    fields = [("id", pa.string()), ("path", pa.string())]
    fields += [("label", pa.int64())] if description.classes is not None else []
    schema = pa.schema([*fields, (COLUMN, pa.list_(pa.float32(), size))])
    schema = schema.with_metadata({METADATA: description.model_dump_json()})
    waiting: list[Any] = []
    with pq.ParquetWriter(path, schema, use_dictionary=False) as file:

        def write(block: Block) -> None:
            flat = pa.array(np.ascontiguousarray(block.rows).reshape(-1))
            numbers = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(COLUMN).type, mask=_mask(block))
            labels = [] if block.labels is None else [pa.array(block.labels)]
            waiting.append(pa.table([pa.array(block.ids), pa.array(block.paths), *labels, numbers], schema=schema))
            if sum(table.num_rows for table in waiting) * size * 4 >= GROUP_BYTES:
                flush()

        def flush() -> None:
            if waiting:
                file.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting.clear()

        yield write
        flush()


def read_metadata(path: Path) -> bytes:
    """The description. Raises KeyError if there is none, ValueError if it is no parquet file."""
    import pyarrow.parquet as pq

    return bytes((pq.read_schema(path).metadata or {})[METADATA.encode()])


def read_rows(path: Path) -> tuple[Keys, np.ndarray]:
    """The names of the rows, and their numbers, nan where there are none; group by group, for memory's sake."""
    import pyarrow.parquet as pq

    keys = Keys()
    with pq.ParquetFile(path) as file:
        size = file.schema_arrow.field(COLUMN).type.list_size
        found = np.full((file.metadata.num_rows, size), np.nan, np.float32)
        start = 0
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group).combine_chunks()
            numbers = table.column(COLUMN).combine_chunks()
            is_there = np.asarray(numbers.is_valid())
            found[start : start + len(numbers)][is_there] = np.asarray(numbers.flatten()).reshape(-1, size)
            names = [table.column(name).to_pylist() for name in table.column_names if name != COLUMN]
            for row in zip(*names, strict=True):
                keys.add(*row)
            start += len(numbers)
    return keys, found


def _mask(block: Block) -> Any:
    """True where there is nothing; None says that everything is there."""
    import pyarrow as pa

    return None if block.is_there.all() else pa.array(~block.is_there)
