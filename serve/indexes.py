"""The indices of a service, asked in one way wherever their one writer is: in this process, or in one of its own."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mcbeit.encoder import EncoderSpec
from mcbeit.serve.errors import RequestError
from mcbeit.serve.store_folder import StoreFolder
from mcbeit.serve.store_items import Question, StoreError, StoreFacts, StoreHit, StoreItem

Ask = Callable[[str, Sequence[Any]], Awaitable[Any]]  # a method of StoreFolder, its arguments -> what it gave
STATUS = {
    "not_found": 404, "exists": 409, "invalid": 400, "wrong_model": 409, "full": 413, "damaged": 500, "failed": 503,
}  # fmt: skip
LOGGER = logging.getLogger("mcbeit.serve")
THREADS = 4  # an index lets one at a time in; several indices need not wait for each other


class Indexes:
    """Every method is one of `StoreFolder`, and raises RequestError where that raises StoreError."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def all_facts(self) -> list[StoreFacts]:
        """See `StoreFolder`."""
        found: list[StoreFacts] = await self._asked("all_facts")
        return found

    async def facts(self, name: str) -> StoreFacts:
        """See `StoreFolder`."""
        found: StoreFacts = await self._asked("facts", name)
        return found

    async def create(self, name: str, spec: EncoderSpec) -> bool:
        """See `StoreFolder`."""
        return bool(await self._asked("create", name, spec))

    async def drop(self, name: str) -> None:
        """See `StoreFolder`."""
        await self._asked("drop", name)

    async def upsert(self, name: str, items: Sequence[StoreItem], fingerprint: str) -> int:
        """See `StoreFolder`."""
        return int(await self._asked("upsert", name, items, fingerprint))

    async def delete(self, name: str, ids: Sequence[str]) -> int:
        """See `StoreFolder`."""
        return int(await self._asked("delete", name, ids))

    async def get(self, name: str, item_id: str) -> StoreItem:
        """See `StoreFolder`."""
        found: StoreItem = await self._asked("get", name, item_id)
        return found

    async def page(self, name: str, after: str | None, limit: int) -> tuple[list[StoreItem], str | None]:
        """See `StoreFolder`."""
        found: tuple[list[StoreItem], str | None] = await self._asked("page", name, after, limit)
        return found

    async def search(self, name: str, question: Question, fingerprint: str) -> list[StoreHit]:
        """See `StoreFolder`."""
        found: list[StoreHit] = await self._asked("search", name, question, fingerprint)
        return found

    async def _asked(self, method: str, *arguments: Any) -> Any:
        found = await self._ask(method, arguments)
        if isinstance(found, StoreError):
            raise RequestError(STATUS[found.code], found.code, found.message)
        return found


class LocalIndexes:
    """A folder of indices that is open in this process. Raises VectorIndexError if it cannot be had."""

    def __init__(self, path: Path, *, patience_seconds: float = 0.0) -> None:
        self.folder = StoreFolder(path, patience_seconds=patience_seconds)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="indexes")

    async def ask(self, method: str, arguments: Sequence[Any]) -> Any:
        """What a method of the folder gives; a StoreError is given back, not raised, to travel as it is."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._do, method, arguments)

    def close(self) -> None:
        """Let the folder go, after what is under way."""
        self._pool.shutdown()
        self.folder.close()

    def _do(self, method: str, arguments: Sequence[Any]) -> Any:
        try:
            return getattr(self.folder, method)(*arguments)
        except StoreError as error:
            return error
        except (sqlite3.Error, OSError):
            LOGGER.exception("%s of an index failed", method)
            return StoreError("failed", "the index could not be read or written, and is as it was; the log says why")
