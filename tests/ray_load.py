"""`mcbeit serve` under Ray as a process, its replicas, and clients that send to it without pause."""

import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from images import encode, photo
from processes import begin, processes_of_ray, wait_until

from mcbeit.ray_cluster import ENVIRONMENT, descendants, end
from mcbeit.serve.config import RayConfig
from mcbeit.serve.ray_environment import free_port, serve_environment
from mcbeit.temporary import temporary_folder

HANG_SECONDS = 180.0  # that nothing takes
STAYS_SECONDS = 1.0  # titles of processes are incomplete for a moment when they change
REFUSED = "ConnectError"  # the address took no connection: nothing was accepted


class Served(NamedTuple):
    """A service that is ready."""

    process: subprocess.Popen[str]
    address: str
    start_seconds: float

    def replicas(self) -> set[int]:
        """The processes that have loaded the models."""
        return replicas_below(self.process.pid)

    def wait_for(self, count: int, *, without: frozenset[int] = frozenset()) -> float:
        """Seconds until there are so many replicas, none of which is one of `without`, and it stays so."""
        began = since = time.monotonic()

        def is_so() -> bool:
            nonlocal since
            found, now = self.replicas(), time.monotonic()
            since = since if len(found) == count and not found & without else now
            return now - since > STAYS_SECONDS

        wait_until(is_so, self.process)
        return since - began

    def wait_to_say(self, pattern: str) -> re.Match[str]:
        """Read on until a line has the pattern."""
        return heard(self.process, pattern)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to end: the exit code, and what it has said since it was ready."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, output

    def leftovers(self, pids: set[int]) -> list[str]:
        """What is there of it that should not be: of the processes that it had, and of its folders."""
        alive = [title for pid, title in processes_of_ray().items() if pid in pids]
        return alive + [str(path) for path in Path("/tmp").glob(f"mcbeit-*-{self.process.pid}-*")]


def replicas_below(pid: int) -> set[int]:
    """Of the cluster of a process."""
    own = set(descendants(pid))
    titles = {pid: title for pid, title in processes_of_ray().items() if pid in own}
    return {pid for pid, title in titles.items() if "ServeReplica:" in title and "init" not in title}


@contextmanager
def served(*words: str) -> Iterator[Served]:
    """The service of these words on a free port; it is ended if it has not ended by itself."""
    began = time.monotonic()
    process = begin("serve", *words, "port=0")
    try:
        address = heard(process, r"ready at (http://\S+) \(routes")[1]
        yield Served(process, address, time.monotonic() - began)
    finally:
        if process.poll() is None:
            below = set(descendants(process.pid))
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=HANG_SECONDS)
            process.kill()
            end(below, patience_seconds=0.0)
        process.communicate()


class Head(NamedTuple):
    """A cluster that is there, of this machine alone."""

    process: subprocess.Popen[bytes]
    address: str
    dashboard: str
    variables: dict[str, str]

    def serve(self, *arguments: str) -> subprocess.Popen[str]:
        """Ray Serve's own command line."""
        return subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **self.variables},
        )  # fmt: skip


@contextmanager
def cluster(num_cpus: int = 2) -> Iterator[Head]:
    """What `ray start --head` starts, as docs/serve-cluster.md has it, on free ports."""
    port, dashboard = free_port(), free_port()
    with temporary_folder("ray", Path("/tmp")) as folder:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "OMP_NUM_THREADS": "1"}
        variables = {**ENVIRONMENT, **serve_environment(RayConfig(), folder), **token}
        command = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
                   f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", f"--temp-dir={folder}",
                   f"--object-store-memory={128 * 2**20}"]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **variables},
        )  # fmt: skip
        try:
            wait_until(lambda: listens(port) and listens(dashboard))
            yield Head(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", variables)
        finally:
            below = set(descendants(process.pid))
            process.terminate()
            process.wait(HANG_SECONDS)
            end(below)


def listens(port: int) -> bool:
    """Whether somebody does, on this machine."""
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def heard(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Where a process says something; it may not end before."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError("".join(said))


class Answer(NamedTuple):
    """What became of one request."""

    began: float
    ended: float
    status: int | None  # None: there was no answer
    revision: str | None
    error: str  # the kind, without an answer; else the beginning of one that is no success

    @property
    def is_good(self) -> bool:
        return self.status == 200

    @property
    def was_accepted(self) -> bool:
        """Somebody had taken it, or might have."""
        return self.error != REFUSED


class Load:
    """Clients that ask one thing after another; what fails is not sent again."""

    def __init__(self, ask: Callable[[], Answer], *, num_clients: int = 8) -> None:
        self._ask, self._stop = ask, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_clients)]
        self.answers: list[Answer] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._ask())

    def wait_for(self, count: int) -> None:
        """Until so many more requests were answered."""
        until = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= until)

    @property
    def failed(self) -> list[Answer]:
        """Requests without the answer that they should have."""
        return [answer for answer in self.answers if not answer.is_good]

    def told(self) -> str:
        """One line of figures."""
        kinds = collections.Counter(answer.error for answer in self.failed)
        seconds = [answer.ended - answer.began for answer in self.answers if answer.is_good]
        rate = len(self.answers) / (max(a.ended for a in self.answers) - min(a.began for a in self.answers))
        longest = f"longest {max(seconds):.2f} s" if seconds else "none answered"
        return f"{len(self.answers)} requests, {rate:.0f}/s, {longest}, {len(self.failed)} failed {dict(kinds) or ''}"


def form(num_images: int, side: int) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of one request."""
    return [("file", (str(seed), encode(photo(side, side, seed), "jpg"))) for seed in range(num_images)]


@contextmanager
def sending(
    address: str, num_images: int = 4, *, side: int = 96, num_clients: int = 8, keeps: bool = True
) -> Iterator[Load]:
    """Requests of several images, over connections that are kept, or over a new one each time."""
    files, limits = form(num_images, side), httpx.Limits(max_keepalive_connections=None if keeps else 0)
    with httpx.Client(base_url=address, timeout=HANG_SECONDS, trust_env=False, limits=limits) as client:

        def ask() -> Answer:
            began = time.monotonic()
            try:
                answer = client.post("/v1/embed", files=files)
            except httpx.TransportError as error:
                return Answer(began, time.monotonic(), None, None, type(error).__name__)
            said = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:80]}"
            return Answer(began, time.monotonic(), answer.status_code, answer.headers.get("x-model-revision"), said)

        with Load(ask, num_clients=num_clients) as load:
            yield load
