"""One index on the disk: ids, metadata and vectors in SQLite, which is the truth, and faiss in memory to search it.

SQLite writes ahead and syncs before a call returns, so what was acknowledged survives a kill and a power cut, and a
call is there as a whole or not at all. Every vector has a checksum. faiss is filled from SQLite when an index is
opened.
"""

import json
import re
import sqlite3
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mcbeit.encoder import EncoderSpec, unit_length
from mcbeit.serve.store_items import Filter, Question, StoreError, StoreFacts, StoreHit, StoreItem
from mcbeit.serve.store_vectors import Rows, StoreVectors

FORMAT = "1"
MAX_ID, MAX_METADATA = 512, 64 * 1024  # characters of an id, bytes of metadata
MAX_HITS = 10_000  # offset and k together
MAX_PAGE = 1000
DEDUP_AHEAD = 4  # times as many hits are looked at when those that are alike are left out
LOADED_AT_ONCE = 4096
KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    row INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, vector BLOB NOT NULL, checksum INTEGER NOT NULL,
    metadata TEXT
);
CREATE INDEX metadata_without_vectors ON items (metadata);
"""


class VectorStore:
    """An open index. Any number of threads may use it; they take turns."""

    def __init__(self, path: Path, name: str, max_vectors: int) -> None:
        self.path, self.name, self.max_vectors = path, name, max_vectors
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False)
        try:
            _set_up(self._db)
            self.spec = self._read_spec()
            self._vectors = StoreVectors(self.spec.dim)
            self._load()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise _damaged(name, str(error)) from error
        except BaseException:
            self._db.close()
            raise

    @staticmethod
    def create(path: Path, spec: EncoderSpec) -> None:
        """Write a new, empty file."""
        db = sqlite3.connect(path)
        _set_up(db)
        with db:
            db.executescript(SCHEMA)
            facts = {"format": FORMAT, "spec": spec.model_dump_json()}
            db.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        db.close()

    def close(self) -> None:
        """Let the file go."""
        with self._lock:
            self._db.close()

    def facts(self) -> StoreFacts:
        """What it is."""
        with self._lock:
            return StoreFacts(self.name, len(self._vectors), self.spec)

    def upsert(self, items: Sequence[StoreItem], fingerprint: str) -> int:
        """Add items, or replace those with the same ids, all or none; how many are new. They are safe when it returns.

        Raises StoreError: invalid, wrong_model, or full.
        """
        self.check_model(fingerprint)
        last = {item.id: item for item in items}  # of items with one id the last counts
        vectors = self._unit_vectors(list(last.values()))
        told = [_metadata(item) for item in last.values()]
        with self._lock:
            before = self._rows_of(list(last))
            if len(self._vectors) + len(last) - len(before) > self.max_vectors:
                raise StoreError(
                    "full",
                    f"the index '{self.name}' holds {len(self._vectors)} of at most {self.max_vectors} vectors; beyond "
                    "that, and for several writers, take a vector database: docs/retrieval.md",
                )
            with self._db:
                self._delete_rows(list(before.values()))
                rows = [
                    self._insert(item_id, vector, metadata)
                    for item_id, vector, metadata in zip(last, vectors, told, strict=True)
                ]
            self._vectors.remove(list(before.values()))
            self._vectors.add(rows, vectors)
            return len(last) - len(before)

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items; they are gone for good when this returns. How many there were."""
        with self._lock:
            rows = list(self._rows_of(ids).values())
            with self._db:
                self._delete_rows(rows)
            self._vectors.remove(rows)
            return len(rows)

    def get(self, item_id: str) -> StoreItem:
        """One item. Raises StoreError if there is none."""
        with self._lock:
            found = self._db.execute("SELECT id, vector, metadata FROM items WHERE id = ?", (item_id,)).fetchone()
        if found is None:
            raise StoreError("not_found", f"there is no item {item_id[:80]!r} in the index '{self.name}'")
        return _item(found)

    def page(self, after: str | None, limit: int) -> tuple[list[StoreItem], str | None]:
        """Items in the order in which they came, after a mark; and the mark of the next page, None at the end."""
        if not 1 <= limit <= MAX_PAGE or not (after is None or (after.isdecimal() and len(after) < 19)):
            raise StoreError("invalid", f"limit must be 1 to {MAX_PAGE}, after what the page before said")
        with self._lock:
            found = self._db.execute(
                "SELECT id, vector, metadata, row FROM items WHERE row > ? ORDER BY row LIMIT ?",
                (int(after or 0), limit + 1),
            ).fetchall()
        more = len(found) > limit
        return [_item(row) for row in found[:limit]], str(found[limit - 1][3]) if more else None

    def search(self, question: Question, fingerprint: str) -> list[StoreHit]:
        """The nearest items. Raises StoreError: invalid, wrong_model, or not_found for an id that is not there."""
        self.check_model(fingerprint)
        _check_question(question)
        with self._lock:
            among = self._fitting(question.filter)
            query, own = self._query(question)
            wanted = question.offset + question.k
            reach = min(MAX_HITS, wanted * DEDUP_AHEAD if question.dedup is not None else wanted) + (own is not None)
            near = [one for one in self._vectors.search(query, reach, among) if one[0] != own]
            if question.dedup is not None:
                near = self._different(near, question.dedup, wanted)
            near = near[question.offset : wanted]
            return self._hits(near, with_vectors=question.with_vectors)

    def check_model(self, fingerprint: str) -> None:
        """Raise StoreError unless vectors of this encoder may be compared with those of the index."""
        if fingerprint != self.spec.fingerprint:
            raise StoreError(
                "wrong_model",
                f"the index '{self.name}' holds vectors of '{self.spec.name}' (revision {self.spec.fingerprint[:12]}), "
                f"these are of another model (revision {fingerprint[:12]}): they cannot be compared. Make a new index "
                "and add the images again",
            )

    def _read_spec(self) -> EncoderSpec:
        facts = dict(self._db.execute("SELECT name, value FROM facts").fetchall())
        if facts.get("format") != FORMAT:
            raise StoreError("damaged", f"the index '{self.name}' is of another version: {facts.get('format')}")
        return EncoderSpec.model_validate_json(facts["spec"])

    def _load(self) -> None:
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damaged(self.name, str(verdict))
        cursor = self._db.execute("SELECT row, id, vector, checksum FROM items ORDER BY row")
        while found := cursor.fetchmany(LOADED_AT_ONCE):
            for _, item_id, blob, checksum in found:
                if len(blob) != 4 * self.spec.dim or zlib.crc32(blob) != checksum:
                    raise _damaged(self.name, f"the vector of {item_id!r} is not what was written")
            vectors = np.frombuffer(b"".join(row[2] for row in found), "<f4").reshape(len(found), -1)
            self._vectors.add([row[0] for row in found], vectors)

    def _unit_vectors(self, items: Sequence[StoreItem]) -> Float32[np.ndarray, "item dim"]:
        for item in items:
            if not 0 < len(item.id) <= MAX_ID:
                raise StoreError("invalid", f"an id must have 1 to {MAX_ID} characters, found {len(item.id)}")
            if item.vector.shape != (self.spec.dim,):
                raise StoreError(
                    "invalid",
                    f"the vector of {item.id[:80]!r} has {item.vector.size} numbers, not {self.spec.dim}",
                )
        vectors = np.array([item.vector for item in items], np.float32).reshape(-1, self.spec.dim)
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise StoreError("invalid", "a vector holds numbers that are not finite, or only zeros")
        return unit_length(vectors)

    def _insert(self, item_id: str, vector: np.ndarray, metadata: str | None) -> int:
        blob = vector.astype("<f4").tobytes()
        cursor = self._db.execute(
            "INSERT INTO items (id, vector, checksum, metadata) VALUES (?, ?, ?, ?)",
            (item_id, blob, zlib.crc32(blob), metadata),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _delete_rows(self, rows: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM items WHERE row = ?", [(row,) for row in rows])

    def _rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        found = self._db.execute(
            "SELECT id, row FROM items WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
        ).fetchall()
        return dict(found)

    def _fitting(self, wanted: Filter) -> Rows | None:
        """The rows whose metadata fits; None: all."""
        if not wanted:
            return None
        conditions, values = [], []
        for key, value in wanted.items():
            if not KEY.fullmatch(key):
                raise StoreError(
                    "invalid", f"filter: {key[:80]!r} is no key that can be asked for: letters, digits, _, -"
                )
            options = list(value) if isinstance(value, list | tuple) else [value]
            conditions.append("(metadata -> ?) IN (SELECT value FROM json_each(?))")
            values += [f'$."{key}"', json.dumps([json.dumps(option, ensure_ascii=False) for option in options])]
        found = self._db.execute(f"SELECT row FROM items WHERE {' AND '.join(conditions)}", values).fetchall()
        return np.array([row for (row,) in found], np.int64)

    def _query(self, question: Question) -> tuple[Float32[np.ndarray, " dim"], int | None]:
        if question.id is not None:
            rows = self._rows_of([question.id])
            if question.id not in rows:
                raise StoreError("not_found", f"there is no item {question.id[:80]!r} in the index '{self.name}'")
            row = rows[question.id]
            return self._vectors.vectors([row])[0], row
        assert question.vector is not None
        return self._unit_vectors([StoreItem("query", question.vector)])[0], None

    def _different(self, near: list[tuple[int, float]], most: float, wanted: int) -> list[tuple[int, float]]:
        """The first hits, as many as are wanted, of which none is more alike than that to one before it."""
        vectors, kept = self._vectors.vectors([row for row, _ in near]), list[tuple[int, float]]()
        better = np.empty((wanted, self.spec.dim), np.float32)
        for hit, vector in zip(near, vectors, strict=True):
            if len(kept) == wanted:
                break
            if not kept or float((better[: len(kept)] @ vector).max()) <= most:
                better[len(kept)] = vector
                kept.append(hit)
        return kept

    def _hits(self, near: list[tuple[int, float]], *, with_vectors: bool) -> list[StoreHit]:
        found = {
            row: (item_id, metadata)
            for row, item_id, metadata in self._db.execute(
                "SELECT row, id, metadata FROM items WHERE row IN (SELECT value FROM json_each(?))",
                (json.dumps([row for row, _ in near]),),
            )
        }
        vectors = self._vectors.vectors([row for row, _ in near]) if with_vectors else [None] * len(near)
        return [
            StoreHit(found[row][0], max(-1.0, min(1.0, score)), _read_metadata(found[row][1]), vector)
            for (row, score), vector in zip(near, vectors, strict=True)
        ]


def _set_up(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")


def _damaged(name: str, reason: str) -> StoreError:
    return StoreError("damaged", f"the index '{name}' is damaged: {reason}; restore it from a backup, or delete it")


def _metadata(item: StoreItem) -> str | None:
    if item.metadata is None:
        return None
    try:
        text = json.dumps(dict(item.metadata), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StoreError("invalid", f"the metadata of {item.id[:80]!r} is no JSON object") from error
    if len(text.encode()) > MAX_METADATA:
        raise StoreError("invalid", f"the metadata of {item.id[:80]!r} has more than {MAX_METADATA} bytes")
    return text


def _read_metadata(text: str | None) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = None if text is None else json.loads(text)
    return found


def _item(row: Sequence[Any]) -> StoreItem:
    return StoreItem(row[0], np.frombuffer(row[1], "<f4"), _read_metadata(row[2]))


def _check_question(question: Question) -> None:
    if (question.vector is None) == (question.id is None):
        raise StoreError("invalid", "search for exactly one of an image, a vector and an id")
    if question.k < 1 or question.offset < 0 or question.k + question.offset > MAX_HITS:
        raise StoreError("invalid", f"k must be 1 or more, offset 0 or more, both together at most {MAX_HITS}")
    if (question.with_vectors or question.dedup is not None) and question.k + question.offset > MAX_PAGE:
        raise StoreError("invalid", f"with vectors or dedup, k and offset together may be at most {MAX_PAGE}")
    if question.dedup is not None and not -1 <= question.dedup <= 1:
        raise StoreError("invalid", f"dedup is {question.dedup}; it is a cosine, -1 to 1")
