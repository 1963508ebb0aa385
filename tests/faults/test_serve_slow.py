"""Two hundred clients that send a byte a second, and what others notice of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import pytest
from images import encode, photo
from load import Running, keep_asking, milliseconds, running, seconds_from_now, statuses, together

pytestmark = pytest.mark.faults

SLOW, SECONDS, HEALTHY = 200, 20.0, 4
HEADER_SECONDS, BODY_SECONDS = 5.0, 8.0
LIMITS = (f"limits.header_seconds={HEADER_SECONDS}", f"limits.body_seconds={BODY_SECONDS}")
HANG = 30.0  # beyond the limits: not slow, but forgotten
IMAGES = [encode(photo(240, 320, seed=seed), "jpg") for seed in range(16)]


def test_serve__two_hundred_slow_clients() -> None:
    with running("--fake", "cache_bytes=0", *LIMITS) as service:
        memory = service.rss_mb()
        alone = keep_asking(service, image, HEALTHY, seconds_from_now(SECONDS / 2))
        goes_on = seconds_from_now(SECONDS)
        besides, ends = together(lambda one: (healthy, slow)[one](service, goes_on), 2)
        after = service.ask(IMAGES[0])
        print(f"healthy, alone:        {milliseconds([answer.seconds for answer in alone])}")
        print(f"healthy, besides {SLOW}: {milliseconds([answer.seconds for answer in besides])}")
        for kind in ("header", "body"):
            told = Counter(end for one, end, _ in ends if one == kind)
            held = [seconds for one, _, seconds in ends if one == kind]
            print(f"slow {kind}: {dict(told)}, held {min(held):.1f} to {max(held):.1f} s")
        print(f"memory {memory:.0f} MB before, {service.rss_mb():.0f} MB after")
        assert set(statuses(alone)) == set(statuses(besides)) == {200}
        assert after.status == 200
        assert {end for kind, end, _ in ends if kind == "header"} == {"hung up"}
        assert {end for kind, end, _ in ends if kind == "body"} == {"408"}


def image(client: int, number: int) -> bytes:
    """A file, another one each time."""
    return IMAGES[(client * 5 + number) % len(IMAGES)]


def healthy(service: Running, goes_on: Callable[[], bool]) -> object:
    """Clients as they should be."""
    return keep_asking(service, image, HEALTHY, goes_on)


def slow(service: Running, goes_on: Callable[[], bool]) -> object:
    """Slow ones, each of which begins anew when it is cut off: what they sent, how it ended, after how many seconds."""
    return asyncio.run(_all_slow(service.port, goes_on))


async def _all_slow(port: int, goes_on: Callable[[], bool]) -> list[tuple[str, str, float]]:
    found = await asyncio.gather(*(_again(port, ("header", "body")[number % 2], goes_on) for number in range(SLOW)))
    return [end for ends in found for end in ends]


async def _again(port: int, kind: str, goes_on: Callable[[], bool]) -> list[tuple[str, str, float]]:
    found = list[tuple[str, str, float]]()
    while not found or goes_on():
        began = time.perf_counter()
        end = await asyncio.wait_for(_drip(port, DRIPS[kind]), HANG)
        found.append((kind, end, time.perf_counter() - began))
    return found


async def _drip(port: int, start: bytes) -> str:
    """Send a byte a second until the service has enough of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(start)
        answer = asyncio.ensure_future(reader.read(1000))
        while not (await asyncio.wait({answer}, timeout=1.0))[0]:
            writer.write(b"x")
        return answer.result().partition(b" ")[2][:3].decode() or "hung up"
    except ConnectionError:
        return "hung up"
    finally:
        writer.close()


DRIPS = {
    "header": b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "body": b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
}
