"""Images per second and latency of the service against a bare loop of the same model, in one run.

    python benchmarks/serve.py --model fake --model exported --way plain --way ray [--size 20kB ...] [--seconds 5]

Ways: `bare` is one thread that decodes and computes in turn, image by image (batch 1), and once more in batches as
the service makes them, with the threads that the service has; `plain` is `mcbeit serve --plain`; `ray` is Ray Serve as
`mcbeit serve` starts it; `ray-default` the same without HAProxy. Each runs in a process of its own, one after the
other. Requests are raw JPEGs to /v1/embed, answers float32, every image a different one, so the cache never helps.

The clients are threads of this script on the same cores, which is a part of the loss.
"""

import argparse
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import cycle, islice
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from mcbeit.encoder import PixelEncoder
from mcbeit.machine import cpu_name, num_cores
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.model import open_encoder

SIZES = {"20kB": (240, 320, 85), "150kB": (600, 800, 90), "3MB": (2700, 3600, 92)}  # height, width, quality
COMMANDS = {
    "plain": (["--plain"], {}),
    "ray": ([], {}),
    "ray-default": ([], {"RAY_SERVE_ENABLE_HA_PROXY": "0"}),
}


class Rate(NamedTuple):
    """What was measured."""

    images_per_second: float
    p50: float  # milliseconds
    p95: float
    refused: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--way", action="append", choices=sorted(COMMANDS), required=True)
    parser.add_argument("--size", action="append", choices=SIZES)
    parser.add_argument("--concurrency", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement, about")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of the service")
    options = parser.parse_args()
    print(f"{cpu_name()}, {num_cores():g} cores")
    for model in options.model:
        for size in options.size or SIZES:
            run(model, size, options)


def run(model: str, size: str, options: argparse.Namespace) -> None:
    """Measure one model with images of one size, every way."""
    images = made_images(*SIZES[size])
    kilobytes = sum(map(len, images)) / len(images) / 1000
    print(f"\n{model}, JPEGs of {SIZES[size][1]} x {SIZES[size][0]}, {kilobytes:.0f} kB")
    encoder = open_encoder(model, ServeConfig(models=(model,)))
    alone = bare(encoder, images, options.seconds, 1, 1)
    tell("bare, one by one", 1, alone, alone)
    together = bare(encoder, images, options.seconds, 8, max(1, int(num_cores())))
    tell("bare, batches of 8", 8, together, together)
    best = max(alone, together)
    for way in options.way:
        with service(model, way, options.set) as port:
            for clients in options.concurrency or (1, 16, 64):
                tell(way, clients, ask(port, images, clients, options.seconds), alone if clients == 1 else best)


def tell(way: str, clients: int, found: Rate, base: Rate) -> None:
    """One line of the table."""
    ratio = found.images_per_second / base.images_per_second
    print(
        f"{way:20} {clients:3} at once {found.images_per_second:8.1f} images/s  {ratio:5.2f} x bare"
        f"  p50 {found.p50:8.1f} ms ({found.p50 - base.p50:+.1f})  p95 {found.p95:8.1f} ms  refused {found.refused}",
        flush=True,
    )


def made_images(height: int, width: int, quality: int, count: int = 64) -> list[bytes]:
    """Different JPEGs with detail at every scale, as photographs have."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count if height < 2000 else 8):
        layers = [rng.normal(0, 90 / 2**level, (height >> (6 - level), width >> (6 - level), 3)) for level in range(6)]
        total = rng.normal(128, 6, (height, width, 3)).astype(np.float32)  # the grain of a sensor
        for layer in layers:
            grey = Image.fromarray((layer * 0.25 + 128).clip(0, 255).astype(np.uint8))
            total += (np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR), np.float32) - 128) * 2
        file = io.BytesIO()
        Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
        found.append(file.getvalue())
    return found


def bare(encoder: PixelEncoder, images: list[bytes], seconds: float, batch: int, threads: int) -> Rate:
    """Decode and compute in a loop, without anything around it."""
    took: list[float] = []
    source = cycle(images)
    with ThreadPoolExecutor(threads) as pool:
        pixels = pool.map if threads > 1 else map
        encoder.embed_pixels(np.stack(list(pixels(encoder.spec.preprocess.pixels, islice(source, batch)))))
        waiting = [pool.submit(encoder.spec.preprocess.pixels, one) for one in islice(source, batch)]
        start = time.perf_counter()
        while time.perf_counter() - start < seconds or len(took) < 3:
            before = time.perf_counter()
            if threads == 1:
                encoder.embed_pixels(np.stack([encoder.spec.preprocess.pixels(next(source)) for _ in range(batch)]))
            else:  # the next batch is decoded while this one is computed
                ready = np.stack([one.result() for one in waiting])
                waiting = [pool.submit(encoder.spec.preprocess.pixels, one) for one in islice(source, batch)]
                encoder.embed_pixels(ready)
            took.append(time.perf_counter() - before)
        total = time.perf_counter() - start
    return Rate(len(took) * batch / total, *percentiles(took), 0)


def ask(port: int, images: list[bytes], clients: int, seconds: float) -> Rate:
    """Closed loops of clients, each with a connection of its own."""
    took: list[list[float]] = [[] for _ in range(clients)]
    refused = [0] * clients
    end = time.perf_counter() + 1.0  # a second to warm up

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        for index in range(10**9):
            if (before := time.perf_counter()) > end + seconds:
                return
            # a trailer that differs: another file for the cache, the same image for the decoder
            body = images[(number * 7 + index) % len(images)] + f"{number}-{index}-{time.time_ns()}".encode()
            connection.request("POST", "/v1/embed", body, {"Accept": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 429:
                refused[number] += 1
                time.sleep(float(answer.headers["retry-after-ms"]) / 1e3)  # as every client does
            elif answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            elif before > end:
                took[number].append(time.perf_counter() - before)

    run_threads(client, clients)
    every = [one for some in took for one in some]
    if not every:  # all were refused
        return Rate(0.0, float("nan"), float("nan"), sum(refused))
    return Rate(len(every) / seconds, *percentiles(every), sum(refused))


def run_threads(work: Callable[[int], None], count: int) -> None:
    """Run it in so many threads; the first error is raised."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, number) for number in range(count)]:
            done.result()


def percentiles(took: list[float]) -> tuple[float, float]:
    """Median and 95th percentile, milliseconds."""
    return median(took) * 1e3, sorted(took)[int(len(took) * 0.95)] * 1e3


@contextmanager
def service(model: str, way: str, assignments: list[str]) -> Iterator[int]:
    """`mcbeit serve` in a process of its own, ready; its port."""
    words, environment = COMMANDS[way]
    command = [sys.executable, "-m", "mcbeit.cli.main", "serve", model, *words, "port=0", *assignments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    started = time.perf_counter()
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "ready at" in line), "")
        if not line:
            raise RuntimeError("the service did not start")
        print(f"{way:20} ready after {time.perf_counter() - started:.1f} s", flush=True)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(line.split()[2].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


if __name__ == "__main__":
    main()
