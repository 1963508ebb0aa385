"""Twenty thousand images that went wrong, over HTTP, to a service in a process of its own."""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from images import encode, photo
from load import Answer, Running, running, together
from mutations import mutation

pytestmark = pytest.mark.faults

COUNT, CLIENTS, SEED = 20_000, 6, 2
GOOD = encode(photo(seed=7))
ALL_FORMATS = "limits.formats=[JPEG, PNG, WEBP, GIF, BMP, TIFF]"


def test_serve__twenty_thousand_broken_images() -> None:
    with running("--fake", ALL_FORMATS, "cache_bytes=0") as service:
        before = good(service)
        memory = list[tuple[int, float]]()
        began = time.perf_counter()
        answers = [answer for found in together(lambda number: ask_all(service, number, memory), CLIENTS)
                   for answer in found]  # fmt: skip
        seconds = time.perf_counter() - began
        tell(answers, memory, seconds)
        assert len(answers) == COUNT
        assert {answer.status for answer in answers} <= {200, 400, 413, 415}
        assert good(service) == before
        assert service.process.poll() is None


def ask_all(service: Running, client: int, memory: list[tuple[int, float]]) -> list[Answer]:
    """One client's share of them; the first one looks at the memory of the service."""
    connection, found = service.client(), list[Answer]()
    for number in range(client, COUNT, CLIENTS):
        found.append(connection.ask(mutation(number, SEED).data))
        if client == 0 and len(found) % 50 == 0:
            memory.append((number, service.rss_mb()))
    connection.close()
    return found


def good(service: Running) -> bytes:
    """The vector of a good image."""
    answer = service.ask(GOOD)
    assert answer.status == 200
    return answer.body


def tell(answers: Sequence[Answer], memory: Sequence[tuple[int, float]], seconds: float) -> None:
    """The figures."""
    counts = dict(sorted(Counter(answer.status for answer in answers).items()))
    longest = max(answer.seconds for answer in answers)
    late = np.array(memory[len(memory) // 2 :])  # it grows by leaps first, to its largest moment
    slope = np.polyfit(late[:, 0] / 1000, late[:, 1], 1)[0]
    print(f"{len(answers)} images in {seconds:.0f} s, answers {counts}, the longest took {longest:.2f} s")
    print(f"memory {memory[0][1]:.0f} MB at first, {memory[-1][1]:.0f} MB at last, {slope:+.3f} MB per 1000 images")
