"""What an index knows of its vectors beside their numbers: a row each in SQLite, in the order of the vectors."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from mcbeit.errors import VectorIndexError

# Names of files need not be UTF-8: they go in and come out as bytes, which SQLite keeps as they are.
CREATE = "CREATE TABLE items (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT, label TEXT, metadata TEXT)"
INSERT = "INSERT INTO items VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?)"
SELECT = "SELECT row, id, path, label, metadata FROM items"


class Item(NamedTuple):
    """What is known of one vector."""

    id: str
    path: str | None = None  # of the image
    label: str | None = None
    metadata: Mapping[str, Any] | None = None  # whatever else JSON can say


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write a new file. Raises VectorIndexError if two items have the same id."""
    connection = sqlite3.connect(path, isolation_level=None)
    last = ""

    def rows() -> Iterator[tuple[int, bytes | None, bytes | None, bytes | None, str | None]]:
        nonlocal last
        for row, item in enumerate(items):
            last = item.id
            metadata = None if item.metadata is None else json.dumps(item.metadata)
            yield row, _encoded(item.id), _encoded(item.path), _encoded(item.label), metadata

    try:
        connection.execute("PRAGMA journal_mode = OFF")  # a file that is not finished is thrown away
        connection.execute("BEGIN")
        connection.execute(CREATE)
        connection.executemany(INSERT, rows())
        connection.execute("COMMIT")
    except sqlite3.IntegrityError as error:
        raise VectorIndexError(f"two vectors have the id '{last}'; ids have to be different") from error
    finally:
        connection.close()


class Items:
    """The rows of a file, read by any number of threads. Raises VectorIndexError if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        # immutable: nobody writes to it, so no lock files appear beside it, even in a folder that is read-only
        self._connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self._connection.text_factory = os.fsdecode

    def rows(self, numbers: Sequence[int]) -> dict[int, Item]:
        """The items of some rows."""
        wanted = json.dumps(list(numbers))  # one parameter: the number of parameters has a limit
        found = self._ask(f"{SELECT} WHERE row IN (SELECT value FROM json_each(?))", wanted)
        return {row[0]: _item(row) for row in found}

    def range(self, start: int, end: int) -> list[Item]:
        """The items of the rows from `start` to before `end`, in order."""
        return [_item(row) for row in self._ask(f"{SELECT} WHERE row >= ? AND row < ? ORDER BY row", start, end)]

    def close(self) -> None:
        """Let the file go."""
        self._connection.close()

    def _ask(self, question: str, *values: str | int) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(question, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise VectorIndexError(f"'{self.path}' cannot be read: {error}; build the index again") from error


def _item(row: tuple[Any, ...]) -> Item:
    return Item(row[1], row[2], row[3], None if row[4] is None else json.loads(row[4]))


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)
