"""All indices of a service: a folder with one folder each. One process at a time may have it open."""

import fcntl
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mcbeit.atomic import sync
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import VectorIndexError
from mcbeit.serve.store import VectorStore
from mcbeit.serve.store_items import Question, StoreError, StoreFacts, StoreHit, StoreItem

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE, LOCK = "items.sqlite", "lock"
MAX_VECTORS = 1_000_000  # of one index; each is in memory, and every search looks at all of them


class StoreFolder:
    """Indices by name; each is opened when it is first asked for. Any number of threads may use it.

    `patience_seconds`: how long to wait for another process that is about to let it go.
    Raises VectorIndexError if the folder cannot be had, StoreError for everything that a client may do wrong.
    """

    def __init__(self, path: Path, *, max_vectors: int = MAX_VECTORS, patience_seconds: float = 0.0) -> None:
        self.path, self.max_vectors = path, max_vectors
        self._open: dict[str, VectorStore] = {}
        self._lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise VectorIndexError(f"indexes={path} cannot be used: {error.strerror}") from error
        if not _locked(self._descriptor, patience_seconds):
            os.close(self._descriptor)
            raise VectorIndexError(
                f"indexes={path} is open in another process; an index has one writer: stop it, or name another folder"
            )
        for rest in path.glob(".*"):  # of something that was killed
            shutil.rmtree(rest, ignore_errors=True)

    def close(self) -> None:
        """Let all files go."""
        with self._lock:
            for store in self._open.values():
                store.close()
            self._open.clear()
            os.close(self._descriptor)

    def names(self) -> list[str]:
        """Of all indices."""
        return sorted(found.parent.name for found in self.path.glob(f"*/{FILE}") if NAME.fullmatch(found.parent.name))

    def create(self, name: str, spec: EncoderSpec) -> bool:
        """Make an index for vectors of an encoder; False if it is there already, for the same encoder.

        Raises StoreError: invalid for the name, exists if it is there for another encoder.
        """
        if not NAME.fullmatch(name):
            raise StoreError("invalid", f"an index is named by small letters, digits, _ and -; found {name[:80]!r}")
        with self._lock:
            if (self.path / name).exists():
                if self._get(name).spec.fingerprint != spec.fingerprint:
                    raise StoreError("exists", f"there is an index '{name}' of another model; delete it first")
                return False
            staged = self.path / f".{name}-{secrets.token_hex(4)}"
            staged.mkdir()
            VectorStore.create(staged / FILE, spec)
            staged.rename(self.path / name)
            sync(self.path)
            return True

    def drop(self, name: str) -> None:
        """Delete an index, whole. Raises StoreError if there is none."""
        with self._lock:
            self._check_there(name)
            if (store := self._open.pop(name, None)) is not None:
                store.close()
            gone = self.path / f".{name}-{secrets.token_hex(4)}"
            (self.path / name).rename(gone)
            sync(self.path)
        shutil.rmtree(gone, ignore_errors=True)

    def facts(self, name: str) -> StoreFacts:
        """What an index is."""
        return self._store(name).facts()

    def all_facts(self) -> list[StoreFacts]:
        """What all of them are."""
        return [self.facts(name) for name in self.names()]

    def upsert(self, name: str, items: Sequence[StoreItem], fingerprint: str) -> int:
        """See `VectorStore.upsert`."""
        return self._store(name).upsert(items, fingerprint)

    def delete(self, name: str, ids: Sequence[str]) -> int:
        """See `VectorStore.delete`."""
        return self._store(name).delete(ids)

    def get(self, name: str, item_id: str) -> StoreItem:
        """See `VectorStore.get`."""
        return self._store(name).get(item_id)

    def page(self, name: str, after: str | None, limit: int) -> tuple[list[StoreItem], str | None]:
        """See `VectorStore.page`."""
        return self._store(name).page(after, limit)

    def search(self, name: str, question: Question, fingerprint: str) -> list[StoreHit]:
        """See `VectorStore.search`."""
        return self._store(name).search(question, fingerprint)

    def _store(self, name: str) -> VectorStore:
        with self._lock:
            return self._get(name)

    def _get(self, name: str) -> VectorStore:
        if name not in self._open:
            self._check_there(name)
            self._open[name] = VectorStore(self.path / name / FILE, name, self.max_vectors)
        return self._open[name]

    def _check_there(self, name: str) -> None:
        if not NAME.fullmatch(name) or not (self.path / name / FILE).is_file():
            raise StoreError("not_found", f"there is no index {name[:80]!r} here; PUT /v1/indexes/NAME makes one")


def _locked(descriptor: int, patience_seconds: float) -> bool:
    """Hold the lock; False if another process keeps it. The system takes it from one that dies."""
    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        else:
            return True
