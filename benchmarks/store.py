"""An index of the service without the service: how long adding, searching, filtering and opening take.

python benchmarks/store.py [--vectors 10000 100000] [--dim 384]
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mcbeit.encoder import EncoderSpec
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.machine import cpu_name, num_cores
from mcbeit.serve.store_folder import StoreFolder
from mcbeit.serve.store_items import Question, StoreItem

NAME, CLASSES, AT_ONCE, QUERIES = "index", 10, 500, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=384)
    options = parser.parse_args()
    print(f"{cpu_name()}, {num_cores():g} cores; {options.dim} numbers per vector")
    for count in options.vectors:
        with tempfile.TemporaryDirectory() as path:
            measure(Path(path), FakeEncoder(dim=options.dim).spec, count)


def measure(path: Path, spec: EncoderSpec, count: int) -> None:
    """Print the times of one index."""
    rng, folder = np.random.default_rng(0), StoreFolder(path)
    folder.create(NAME, spec)
    started = perf_counter()
    for start in range(0, count, AT_ONCE):
        vectors = rng.standard_normal((AT_ONCE, spec.dim)).astype(np.float32)
        items = [StoreItem(str(start + row), vectors[row], {"class": row % CLASSES}) for row in range(AT_ONCE)]
        folder.upsert(NAME, items, spec.fingerprint)
    added = perf_counter() - started

    def search(**options: Any) -> float:
        """Milliseconds, the median of some queries."""
        took = []
        for query in rng.standard_normal((QUERIES, spec.dim)).astype(np.float32):
            before = perf_counter()
            folder.search(NAME, Question(query, **options), spec.fingerprint)
            took.append((perf_counter() - before) * 1e3)
        return median(took)

    plain, filtered = search(), search(filter={"class": 3})
    folder.close()
    started = perf_counter()
    again = StoreFolder(path)
    again.facts(NAME)
    opened = perf_counter() - started
    again.close()
    print(f"{count:8} vectors: added in {added:.1f} s, searched in {plain:.1f} ms, with a filter in {filtered:.1f} ms, "
          f"opened in {opened:.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
