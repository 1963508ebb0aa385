"""A service with a real model, asked for five times what it can do, told to stop, and given another model meanwhile."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from backbones import backbone, save_backbone
from images import encode, photo
from load import (
    LOST,
    PATIENCE_SECONDS,
    REFUSED,
    Answer,
    Running,
    keep_asking,
    milliseconds,
    running,
    seconds_from_now,
    statuses,
    together,
)
from processes import begin, finish

from mcbeit.encoder import load_encoder

pytestmark = pytest.mark.faults

SHAPE = {"dim": 256, "depth": 6, "num_heads": 4, "patch_size": 16}  # about ten milliseconds per image
IMAGES = [encode(photo(48, 64, seed=seed), "jpg") for seed in range(16)]
WAITING_SECONDS, SENDERS, TIMES = 0.5, 64, 5
OPTIONS = ("cache_bytes=0", "threads=1", f"limits.waiting_seconds={WAITING_SECONDS}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two exported models of one shape with other weights; in a process of its own, as torch logs all that it does."""
    home = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        weights = save_backbone(home / f"{seed}.pth", backbone(160, seed=seed, **SHAPE))
        finish(begin("export", str(weights), "-o", str(home / f"model-{seed}"), "num_images=8", "measure_speed=false"))
    return [home / "model-0", home / "model-1"]


@pytest.fixture
def current(folders: list[Path], tmp_path: Path) -> Path:
    """A link to the first of them, which can be turned."""
    (tmp_path / "current").symlink_to(folders[0])
    return tmp_path / "current"


def image(client: int, number: int) -> bytes:
    """A file, another one each time."""
    return IMAGES[(client * 5 + number) % len(IMAGES)]


def works(answers: Sequence[Answer]) -> list[float]:
    """Seconds of those that are 200."""
    return [answer.seconds for answer in answers if answer.status == 200]


# overload


def test_serve__five_times_what_it_can_do(folders: list[Path]) -> None:
    with running(str(folders[0]), *OPTIONS) as service:
        capacity = len(works(keep_asking(service, image, 4, seconds_from_now(8)))) / 8
        print(f"\ncapacity {capacity:.0f} images/s; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        before = send_at(service, capacity * 0.5, 8.0)
        during = send_at(service, capacity * TIMES, 10.0)
        ended = time.perf_counter()
        after = send_at(service, capacity * 0.5, 8.0)
        refused = [answer for answer in during if answer.status == 429]
        print(f"half of it:      {statuses(before)}, accepted {milliseconds(works(before))}")
        print(f"{TIMES} times of it:   {statuses(during)}, accepted {milliseconds(works(during))}")
        print(f"                 refused {milliseconds([answer.seconds for answer in refused])}")
        print(f"half of it again: {statuses(after)}, accepted {milliseconds(works(after))}")
        print(f"recovered after {recovery(after, 2 * median(works(before))) - ended:.2f} s")
        assert set(statuses(during)) == {200, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert {answer.status for answer in after[len(after) // 2 :]} == {200}


def send_at(service: Running, rate: float, seconds: float) -> list[Answer]:
    """So many requests a second, whatever becomes of them, from SENDERS threads in turn; in order of sending."""
    start = time.perf_counter() + 0.1

    def send(number: int) -> list[Answer]:
        client, found = service.client(), list[Answer]()
        for turn in range(number, int(rate * seconds), SENDERS):
            time.sleep(max(0.0, start + turn / rate - time.perf_counter()))
            found.append(client.ask(image(number, turn)))
        client.close()
        return found

    return sorted((one for found in together(send, SENDERS) for one in found), key=lambda answer: answer.began)


def recovery(answers: Sequence[Answer], usual: float) -> float:
    """When the first of ten in a row was sent that were accepted and, by their median, as fast as usual."""
    for index in range(len(answers) - 9):
        ten = answers[index : index + 10]
        if {answer.status for answer in ten} == {200} and median(answer.seconds for answer in ten) <= usual:
            return ten[0].began
    return float("inf")


# SIGTERM


def test_serve__sigterm_under_load_answers_all_that_was_accepted(folders: list[Path]) -> None:
    with running(str(folders[0]), "cache_bytes=0", "threads=1", "access_log=true") as service:
        killer = threading.Timer(4.0, service.process.send_signal, [signal.SIGTERM])
        killer.start()
        answers = keep_asking(service, image, 24, seconds_from_now(60))
        code = service.process.wait(60)
    sent_at = min(answer.began for answer in answers) + 4.0
    late = [answer for answer in answers if answer.status == 200 and answer.began + answer.seconds > sent_at]
    logged = [line for line in service.log if "POST /v1/embed" in line]
    accepted = sum(" 200 " in line for line in logged)
    print(f"\nanswers {statuses(answers)} (0: refused, -1: nothing read), {accepted} of the log are 200")
    print(f"after the signal {len(late)} were answered, the last after {last(late) - sent_at:.2f} s")
    assert code == 0
    assert "stopped; every request that was accepted is answered" in service.log[-1]
    assert set(statuses(answers)) <= {200, 429, 503, REFUSED, LOST}
    assert accepted == len(works(answers))
    assert len(logged) == sum(answer.status > 0 for answer in answers)


def last(answers: Sequence[Answer]) -> float:
    """When the last of them came."""
    return max((answer.began + answer.seconds for answer in answers), default=float("nan"))


# SIGHUP


def test_serve__sighup_under_load_loses_nothing_and_mixes_nothing(folders: list[Path], current: Path) -> None:
    vectors = {}
    for folder in folders:
        encoder = load_encoder(folder)
        vectors[encoder.spec.fingerprint] = encoder.embed(IMAGES)
    with running(f"shop={current}", "cache_bytes=0", "threads=1") as service:
        turner = threading.Thread(target=turn, args=(service, current, folders))
        turner.start()
        answers = keep_asking(service, image, 6, turner.is_alive)
        turner.join()
    seen = [answer.headers.get("x-model-revision", "none") for answer in answers]
    changes = sum(one != other for one, other in pairwise(seen))
    print(f"\nanswers {statuses(answers)}, {milliseconds(works(answers))}")
    print(f"revisions { ({name[:8]: seen.count(name) for name in sorted(set(seen))}) }, {changes} changes as seen")
    assert set(statuses(answers)) == {200}
    assert set(seen) == set(vectors)
    for answer in answers:
        found = np.frombuffer(answer.body, "<f4")
        alike = {name: np.abs(known - found).max(axis=1).min() for name, known in vectors.items()}
        assert min(alike, key=lambda name: float(alike[name])) == answer.headers["x-model-revision"]
        assert min(alike.values()) < 1e-4


def turn(service: Running, current: Path, folders: Sequence[Path]) -> None:
    """Let the link point at the other model and tell the service, six times; each time wait until it has taken over."""
    with contextlib.closing(service.client()) as client:
        for number in range(6):
            before = client.ask(IMAGES[0]).headers["x-model-revision"]
            other = current.with_name("other")
            other.symlink_to(folders[(number + 1) % 2])
            other.replace(current)
            service.process.send_signal(signal.SIGHUP)
            until = time.perf_counter() + PATIENCE_SECONDS
            while client.ask(IMAGES[0]).headers["x-model-revision"] == before:
                assert time.perf_counter() < until


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    """No thread of ours."""
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
