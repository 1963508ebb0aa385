"""Load on a service that is a process of its own: many clients at once, and what they see."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE_SECONDS = 120.0  # what no answer may take
REFUSED, LOST = 0, -1  # instead of a status: no connection, or no answer on one
ROOT = Path(__file__).parents[1]
HEADERS = {"content-type": "image/png", "accept": "application/octet-stream"}


class Answer(NamedTuple):
    """What came back, and when; the status is REFUSED or LOST if nothing did."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    began: float  # time.perf_counter
    seconds: float


class Running(NamedTuple):
    """A service that runs, and what it has said."""

    process: subprocess.Popen[str]
    port: int
    log: list[str]

    def client(self) -> "Client":
        """A connection to it."""
        return Client(self.port)

    def ask(self, body: bytes) -> Answer:
        """One request, on a connection of its own."""
        with contextlib.closing(self.client()) as client:
            return client.ask(body)

    def rss_mb(self) -> float:
        """The memory that it has, in MB."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", told)
        assert found is not None
        return int(found[1]) / 1024


class Client:
    """One connection, which is made anew when it is lost. For one thread."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)

    def ask(
        self, body: bytes, path: str = "/v1/embed", headers: Mapping[str, str] = HEADERS, method: str = "POST"
    ) -> Answer:
        """Raises TimeoutError if there is no answer in PATIENCE_SECONDS."""
        began = time.perf_counter()
        try:
            self._connection.request(method, path, body, dict(headers))
            answer = self._connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            status, content = answer.status, answer.read()
        except TimeoutError:
            raise
        except (OSError, HTTPException) as error:
            self._connection.close()
            status, told, content = REFUSED if isinstance(error, ConnectionRefusedError) else LOST, {}, b""
        return Answer(status, told, content, began, time.perf_counter() - began)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@contextlib.contextmanager
def running(*words: str) -> Iterator[Running]:
    """`mcbeit serve --plain` on a free port; it is stopped at the end, and its log is whole then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mcbeit.cli.main", "serve", "--plain", "port=0", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stderr is not None
    said = process.stderr
    log, reader = list[str](), threading.Thread(target=lambda: log.extend(said))
    try:
        for line in said:
            log.append(line)
            if found := re.search(r"ready at http://\S+:(\d+)", line):
                break
        else:
            raise AssertionError("".join(log))
        reader.start()
        yield Running(process, int(found[1]), log)
    finally:
        stop(process)
        if reader.ident is not None:
            reader.join()
        said.close()


def stop(process: subprocess.Popen[str]) -> None:
    """Ask it to end, and end it if it does not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def together(work: Callable[[int], Any], count: int) -> list[Any]:
    """Run it in so many threads, with a number each; their results, in order. The first error is raised."""
    with ThreadPoolExecutor(count) as pool:
        return [done.result() for done in [pool.submit(work, number) for number in range(count)]]


def seconds_from_now(seconds: float) -> Callable[[], bool]:
    """True so long."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end


def keep_asking(
    service: Running, bodies: Callable[[int, int], bytes], clients: int, goes_on: Callable[[], bool]
) -> list[Answer]:
    """Closed loops: every client asks as soon as it is answered, until it has no connection any more.

    `bodies` gets the number of the client and that of its request.
    """

    def loop(number: int) -> list[Answer]:
        client, found = service.client(), list[Answer]()
        while goes_on():
            found.append(client.ask(bodies(number, len(found))))
            if found[-1].status == REFUSED:
                break
        client.close()
        return found

    return [answer for answers in together(loop, clients) for answer in answers]


def statuses(answers: Sequence[Answer]) -> dict[int, int]:
    """How many answers of every status."""
    return dict(sorted(Counter(answer.status for answer in answers).items()))


def milliseconds(seconds: Sequence[float]) -> str:
    """Median, 99th percentile and maximum, for people."""
    if not seconds:
        return "none"
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, longest {ordered[-1] * 1e3:.1f} ms ({len(ordered)})"
