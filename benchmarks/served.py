"""Serve an exported model, embed images over HTTP, and compare with the vectors that were computed offline.

    python benchmarks/served.py runs/demo/fp32 runs/demo/val.npy            # a file that `mcbeit embed` wrote
    python benchmarks/served.py runs/demo/fp32 runs/demo/val.npy --keep     # and go on serving
    python benchmarks/served.py runs/demo/fp32 runs/demo/val.npy -- mcbeit bench run -m {address} ...

What follows `--` runs while it is served; {address} in it is where. Ends with 1 if a vector is another one, or as that
command ends.
"""

import argparse
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np

from mcbeit.embeddings import Embeddings, load_embeddings
from mcbeit.encoder import unit_length
from mcbeit.serve.client import Client

LEAST_COSINE = 0.99999
READY = re.compile(r"ready at (\S+)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder that mcbeit export wrote")
    parser.add_argument("embeddings", type=Path, help="what mcbeit embed wrote")
    parser.add_argument("--images", type=int, default=500, help="how many, spread over all")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--keep", action="store_true", help="go on serving until Ctrl-C")
    own, command = split_at_dashes(sys.argv[1:])
    options = parser.parse_args(own)
    embeddings = load_embeddings(options.embeddings)
    rows = np.unique(np.linspace(0, len(embeddings.vectors) - 1, options.images, dtype=int))
    with served(options.model, options.port) as (process, address):
        worst = compare(embeddings, rows, address)
        words = [word.format(address=address) for word in command]
        ended = subprocess.run(words).returncode if words else 0
        if options.keep:
            print(f"look at it: {address}/demo (all routes: {address}/docs); Ctrl-C ends it", flush=True)
            process.wait()
        else:
            print(f"it also had a page, {address}/demo; with --keep, or KEEP=1 make demo, it stays")
    return ended or int(worst < LEAST_COSINE)


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and after it; what argparse makes of it changes from Python to Python."""
    first = words.index("--") if "--" in words else len(words)
    return words[:first], words[first + 1 :]


def compare(embeddings: Embeddings, rows: np.ndarray, address: str) -> float:
    """Print how much the vectors of the service are like those that are there; the least cosine."""
    with Client(address) as client:
        if client.spec.fingerprint != embeddings.spec.fingerprint:
            raise SystemExit("error: the embeddings are of another model than the one that is served")
        started = perf_counter()
        found = client.embed([embeddings.paths[row] for row in rows])
        seconds = perf_counter() - started
    cosines = (unit_length(found) * unit_length(np.array(embeddings.vectors[rows]))).sum(axis=1)
    print(f"{len(rows)} images over HTTP, {len(rows) / seconds:.0f} per second; compared with the vectors of "
          f"{embeddings.spec.name} computed offline: least cosine {cosines.min():.7f}")  # fmt: skip
    return float(cosines.min())


@contextmanager
def served(model: str, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`mcbeit serve --plain` as a process, and its address; it ends with the block."""
    command = [sys.executable, "-m", "mcbeit.cli.main", "serve", model, "--plain", f"port={port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield process, _address(process)
    except KeyboardInterrupt:
        pass
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := READY.search(line):
            threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
            return found[1]
        sys.stderr.write(line)
    raise SystemExit(f"error: the service did not start; it ended with {process.wait()}")


def _pass_on(process: subprocess.Popen[str]) -> None:
    """What the service says is told on, so that it never waits for a reader."""
    assert process.stderr is not None
    for line in process.stderr:
        sys.stderr.write(line)


if __name__ == "__main__":
    sys.exit(main())
