"""Who is let in: not more images than can be answered in time, not more bytes than there is memory for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil

from mcbeit.serve.config import Limits
from mcbeit.serve.errors import overloaded, too_large


class Admission:
    """Counts what was let in and is not done. To be used in one event loop."""

    def __init__(self, limits: Limits, seconds_per_item: Callable[[], float]) -> None:
        self._limits, self._seconds_per_item = limits, seconds_per_item
        self.items = 0
        self.bytes = 0

    @property
    def load(self) -> float:
        """How full it is, from 0 to 1 and beyond: the share of either limit that is used."""
        waiting = self.items * self._seconds_per_item() / self._limits.waiting_seconds
        return max(self.items / self._limits.waiting_items, waiting)

    def check(self) -> None:
        """Raise RequestError (429) if nobody is let in now. Before a body is read."""
        if self.items and self.load >= 1:
            raise self._refusal()

    @contextmanager
    def images(self, count: int) -> Iterator[None]:
        """Let so many images in. Raises RequestError: 413 for more than one request may have, 429 when it is full.

        Who comes when nothing is being done is always let in.
        """
        if count > self._limits.items:
            raise too_large(
                f"the request has more than the {self._limits.items} images allowed; send several requests",
                code="too_many_items",
            )
        if self.items:
            self.check()
            if self.items + count > self._limits.waiting_items:
                raise self._refusal()
        self.items += count
        try:
            yield
        finally:
            self.items -= count

    def take_bytes(self, count: int) -> None:
        """Let so many bytes of a body in; `give_bytes` afterwards. Raises RequestError (429) when it is full."""
        if self.bytes and self.bytes + count > self._limits.bytes_in_flight:
            raise overloaded("the requests that are being read fill the memory that they may use", 1.0)
        self.bytes += count

    def give_bytes(self, count: int) -> None:
        """Bytes of a body are needed no more."""
        self.bytes -= count

    def _refusal(self) -> Exception:
        seconds = max(1, ceil(self.items * self._seconds_per_item() / 2))
        return overloaded(
            f"{self.items} images are waiting already; ask again in {seconds} s",
            float(min(seconds, 60)),
        )
