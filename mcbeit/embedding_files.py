"""Files of embeddings, written row by row in constant memory; `embeddings.py` reads them."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mcbeit.atomic import replacing, write_bytes
from mcbeit.embeddings import FORMATS, KEYS, METADATA, TENSOR, Block, Description, companion
from mcbeit.errors import EmbeddingError

Write = Callable[[Block], Any]


def check_format(path: Path, what: str) -> None:
    """Raise EmbeddingError if a file with this name cannot hold embeddings, or patch features."""
    if path.suffix not in FORMATS:
        raise EmbeddingError(f"'{path}': embeddings are written as {', '.join(FORMATS)}; end the name of -o in one")
    if path.suffix == ".csv" and what != "embedding":
        raise EmbeddingError(f"'{path}': a table of text cannot hold {what}; use .npy, .parquet or .safetensors")
    if path.suffix == ".parquet":
        from mcbeit.embedding_parquet import require_pyarrow

        require_pyarrow(path)


def write_embeddings(path: Path, description: Description, blocks: Iterable[Block]) -> None:
    """Write a file in the format of its name, and what belongs beside it; each is there whole or not at all.

    The files beside it come first: where the file is, they are.
    """
    with _WRITERS[path.suffix](path, description) as write:
        for block in blocks:
            write(block)


@contextmanager
def _npy(path: Path, description: Description) -> Iterator[Write]:
    """As `numpy.save` writes it, so that `numpy.load` reads or maps it."""
    with _with_ids(path, description) as (file, write_ids):
        shape = (description.num_rows, *description.row_shape)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield _both(write_ids, lambda block: file.write(_bytes(block)))
        write_bytes(companion(path, ".json"), _json(description))


@contextmanager
def _safetensors(path: Path, description: Description) -> Iterator[Write]:
    """One tensor, `embeddings`. Its header has the length of what follows, which is known: no tensor is in memory."""
    with _with_ids(path, description) as (file, write_ids):
        shape = (description.num_rows, *description.row_shape)
        tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape))]}
        header = json.dumps({"__metadata__": {METADATA: description.model_dump_json()}, TENSOR: tensor}).encode()
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        yield _both(write_ids, lambda block: file.write(_bytes(block)))


@contextmanager
def _csv(path: Path, description: Description) -> Iterator[Write]:
    """A header, then id, path, label and the numbers, each with the 9 digits that make it the same float32 again."""
    with replacing(path) as partial:
        with partial.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            names = [f"v{number}" for number in range(description.row_shape[0])]
            table.writerow([*_keys(description), *names])

            def write(block: Block) -> None:
                for keys, row, is_there in zip(_names(block), block.rows, block.is_there, strict=True):
                    table.writerow([*keys, *((f"{value:.9g}" for value in row) if is_there else [""] * len(row))])

            yield write
        write_bytes(companion(path, ".json"), _json(description))


@contextmanager
def _parquet(path: Path, description: Description) -> Iterator[Write]:
    from mcbeit.embedding_parquet import writer

    with replacing(path) as partial, writer(partial, description) as write:
        yield write


_WRITERS = {".npy": _npy, ".safetensors": _safetensors, ".csv": _csv, ".parquet": _parquet}


@contextmanager
def _with_ids(path: Path, description: Description) -> Iterator[tuple[IO[bytes], Write]]:
    """The file itself, and what writes `OUT.ids.csv` beside it."""
    with ExitStack() as stack:
        file = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
        names = stack.enter_context(replacing(companion(path, ".ids.csv")))
        table = csv.writer(
            (text := stack.enter_context(names.open("w", encoding="utf-8", newline=""))), lineterminator="\n"
        )
        table.writerow(_keys(description))
        yield file, lambda block: table.writerows(_names(block))
        text.flush()
        file.flush()


def _both(first: Write, second: Write) -> Write:
    def write(block: Block) -> None:
        first(block)
        second(block)

    return write


def _keys(description: Description) -> tuple[str, ...]:
    return KEYS if description.classes is not None else KEYS[:2]


def _names(block: Block) -> Iterator[tuple[str | int, ...]]:
    if block.labels is None:
        return zip(block.ids, block.paths, strict=True)
    return zip(block.ids, block.paths, block.labels.tolist(), strict=True)


def _bytes(block: Block) -> memoryview:
    return np.ascontiguousarray(block.rows, "<f4").data


def _json(description: Description) -> bytes:
    return (description.model_dump_json(indent=2) + "\n").encode()
