"""Mixed traffic on one service for a long time: does its memory stay flat, does it ever fail?

    python benchmarks/soak.py --minutes 30 [--model exported] [--clients 6] [--set KEY=VALUE ...]

`mcbeit serve --plain` in a process of its own is asked over every contract, for images of many sizes and kinds, good
and broken; some clients leave in the middle. Images repeat now and then, so the cache works and fills. Printed are the
requests by what was asked and how it was answered, and the slope of the memory (RSS) by least squares over the second
half, when caches and buffers are full. The exit status is 1 if an answer was not the one that was due: a 5xx, a 4xx to
a good request, a 200 to a bad one, or none at all.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from load import Client, Running, running, together  # noqa: E402  # beside the tests, which use it too
from traffic import KINDS, Request, draw_pictures, leave  # noqa: E402

EVERY_SECONDS = 1.0  # between two looks at the memory
OPTIONS = (
    "limits.formats=[JPEG, PNG, WEBP, GIF, BMP, TIFF]",
    "cache_bytes=2000000",  # full after a few minutes
)


class Record:
    """What has happened so far; written by all clients."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self.wrong: list[str] = []
        self.longest = 0.0
        self.memory: list[tuple[float, int, float]] = []  # seconds, requests, MB
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Requests so far."""
        return sum(self.counts.values())

    def add(self, request: Request, status: int, seconds: float, text: bytes) -> None:
        """One answer."""
        with self._lock:
            self.counts[request.name, status] += 1
            self.longest = max(self.longest, seconds)
            if status not in request.due and len(self.wrong) < 20:
                self.wrong.append(f"{request.name}: {status}, not one of {request.due}: {text[:200]!r}")

    def look(self, since: float, service: Running) -> None:
        """At the memory."""
        with self._lock:
            self.memory.append((time.perf_counter() - since, self.total, service.rss_mb()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default="--fake")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of the service")
    options = parser.parse_args()
    draw_pictures()
    with running(options.model, *OPTIONS, *options.set) as service:
        record = soak(service, options.minutes * 60, options.clients, options.seed)
        died = service.process.poll() is not None
    tell(record, options.minutes)
    if record.wrong or died:
        print("\n".join(["FAILED", *record.wrong, *(["the service ended"] if died else [])]))
        sys.exit(1)


def soak(service: Running, seconds: float, clients: int, seed: int) -> Record:
    """Let so many clients ask, and look at the memory meanwhile."""
    record, began = Record(), time.perf_counter()

    def work(number: int) -> None:
        if number == clients:
            watch(record, service, began, seconds)
        else:
            ask(record, service, random.Random(f"{seed}-{number}"), began + seconds)

    together(work, clients + 1)
    return record


def ask(record: Record, service: Running, chance: random.Random, until: float) -> None:
    """One client: requests of all kinds, in the order of its own chance."""
    client = Client(service.port)
    while time.perf_counter() < until and service.process.poll() is None:
        request = chance.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0](chance)
        if request.leaves:
            leave(service.port, request, chance)
            record.add(request, 0, 0.0, b"")
            continue
        answer = client.ask(request.body, request.path, request.headers, request.method)
        record.add(request, answer.status, answer.seconds, answer.body)
    client.close()


def watch(record: Record, service: Running, began: float, seconds: float) -> None:
    """The memory, and a line a minute."""
    said = 0
    while time.perf_counter() < began + seconds and service.process.poll() is None:
        time.sleep(EVERY_SECONDS)
        record.look(began, service)
        passed, total, memory = record.memory[-1]
        if passed // 60 > said:
            said = int(passed // 60)
            print(f"{said:4} min  {total:9} requests  {memory:7.1f} MB  {len(record.wrong)} wrong", flush=True)


def tell(record: Record, minutes: float) -> None:
    """All figures."""
    print(f"\n{record.total} requests in {minutes:g} min, the longest took {record.longest:.2f} s")
    for name in sorted({name for name, _ in record.counts}):
        counts = {status: count for (one, status), count in sorted(record.counts.items()) if one == name}
        print(f"  {name:22} {counts}")
    hourly, per_request = slopes(record.memory[len(record.memory) // 2 :])
    memory = [mb for _, _, mb in record.memory]
    print(f"memory {memory[0]:.1f} MB at first, {memory[len(memory) // 2]:.1f} at half, {memory[-1]:.1f} at last,")
    print(f"over the second half {hourly:+.2f} MB per hour, {per_request * 1e5:+.2f} MB per 100k requests")


def slopes(memory: Sequence[tuple[float, int, float]]) -> tuple[float, float]:
    """MB per hour, and per request."""
    seconds, requests, mb = np.array(memory, float).T
    return float(np.polyfit(seconds / 3600, mb, 1)[0]), float(np.polyfit(requests, mb, 1)[0])


if __name__ == "__main__":
    main()
