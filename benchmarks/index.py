"""Recall, time and size of the kinds of index, against the exact answer.

    python benchmarks/index.py [--index DIR] [--counts 20000 100000] [--dim 384] [--queries 500] [--kinds flat hnsw]

The vectors are those of an index that is there, or synthetic: points around 1,000 centres in a space of 32 directions,
with some noise in all. Queries are left out of the index. Recall@10: the share of the ten exact neighbours that are
among the ten found. Times are of one query at a time; the threads are those that OMP_NUM_THREADS allows.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from mcbeit.embeddings import Embeddings
from mcbeit.encoder import EncoderSpec, unit_length
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.index import Index, build_index
from mcbeit.index_kinds import IndexConfig

K = 10


def synthetic(count: int, dim: int) -> np.ndarray:
    """Unit vectors that lie in clusters, as those of images do."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((32, dim))
    points = rng.standard_normal((1000, 32))[rng.integers(1000, size=count)] + 0.5 * rng.standard_normal((count, 32))
    vectors = points @ directions + 0.5 * rng.standard_normal((count, dim))
    return unit_length(vectors.astype(np.float32))


def stored(path: Path) -> np.ndarray:
    """The vectors of an index, in a fixed random order."""
    with Index.open(path) as index:
        vectors = np.concatenate([vectors for _, vectors in index.contents()])
    return np.random.default_rng(0).permutation(vectors)


def spec_of(dim: int) -> EncoderSpec:
    """Any encoder: what is measured does not depend on it."""
    return FakeEncoder(dim=dim).spec


def measure(vectors: np.ndarray, queries: np.ndarray, kind: str) -> None:
    """Build one kind, ask it, and print a line."""
    exact = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :K]
    spec = spec_of(vectors.shape[1])
    names = [str(row) for row in range(len(vectors))]
    embeddings = Embeddings(names, names, vectors, spec)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        build_index(embeddings, Path(folder, "index"), config=IndexConfig(kind=kind))
        build_seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in Path(folder, "index").rglob("index.faiss"))
        seconds, hits = [], 0
        with Index.open(Path(folder, "index")) as index:
            for query, nearest in zip(queries, exact, strict=True):
                start = time.perf_counter()
                found = index.search(query[None], K, fingerprint=spec.fingerprint)[0]
                seconds.append(time.perf_counter() - start)
                hits += len({int(hit.id) for hit in found} & set(nearest.tolist()))
    print(
        f"{kind:7} {len(vectors):8} x {vectors.shape[1]:4}  recall@10 {hits / exact.size:.3f}  "
        f"median {1000 * np.median(seconds):7.2f} ms  build {build_seconds:6.1f} s  index.faiss {size / 1e6:7.1f} MB",
        flush=True,
    )


def main() -> None:
    """Print a line per kind and number of vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="an index whose vectors are used")
    parser.add_argument("--counts", type=int, nargs="+", default=[20_000, 100_000], help="of synthetic vectors")
    parser.add_argument("--dim", type=int, default=384, help="of synthetic vectors")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", default=["flat", "hnsw", "ivfpq"])
    options = parser.parse_args()
    sets = [stored(options.index)] if options.index else []
    for vectors in sets or (synthetic(count + options.queries, options.dim) for count in options.counts):
        for kind in options.kinds:
            measure(vectors[options.queries :], vectors[: options.queries], kind)


if __name__ == "__main__":
    main()
