"""Where the time of one request went."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

STAGES = ("read", "parse", "fetch", "wait", "decode", "queue", "infer", "store", "search", "encode")


@dataclass
class Timings:
    """Seconds per stage. Of the images of a request, which run side by side, the slowest counts in each stage.

    read: the body; parse: what it says; fetch: images by URL; wait: for a thread that decodes; decode: base64, hash,
    cache and pixels; queue: for the model; infer: the batch it was in; store, search: an index;
    encode: the answer.
    """

    started: float = field(default_factory=perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    num_images: int = 0
    num_cached: int = 0

    def note(self, stage: str, seconds: float) -> None:
        """An image took so long in a stage."""
        self.seconds[stage] = max(self.seconds.get(stage, 0.0), seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done in here."""
        before = perf_counter()
        try:
            yield
        finally:
            self.note(name, perf_counter() - before)

    @property
    def total(self) -> float:
        """Seconds since the request came."""
        return perf_counter() - self.started

    def headers(self) -> dict[str, str]:
        """Server-Timing, for browsers, and the names of text-embeddings-inference, both in milliseconds."""
        total = self.total
        told = [f"{name};dur={self.seconds[name] * 1e3:.3f}" for name in STAGES if name in self.seconds]
        cached = [f'cache;desc="{self.num_cached} of {self.num_images} images"'] if self.num_images else []
        return {
            "server-timing": ", ".join([*told, *cached, f"total;dur={total * 1e3:.3f}"]),
            "x-total-time": f"{total * 1e3:.0f}",
            "x-queue-time": f"{self.seconds.get('queue', 0.0) * 1e3:.0f}",
            "x-inference-time": f"{self.seconds.get('infer', 0.0) * 1e3:.0f}",
        }
