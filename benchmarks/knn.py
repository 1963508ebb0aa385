"""The time of an exact search for neighbours: ours by each first pass, plain torch in float32, faiss's IndexFlatIP.

    python benchmarks/knn.py [--queries 1000] [--gallery 100000] [--dim 768] [-k 20] [--rounds 3] [--first-pass fp32]

The vectors are synthetic unit vectors: points around 1,000 centres in a space of 32 directions, with some noise in all,
or with --unstructured drawn from a normal distribution, where int8 and bf16 leave many more candidates. In each round
every method runs once, so that a busy machine slows all of them; times are medians, a ratio is the median over the
rounds of the faster of torch and faiss to ours. What every method found is compared. The last column is the time for
ImageNet-1k, 50,000 x 1,281,167 x 768, at the same speed; ours has costs per gallery vector and per query that weigh
less there. The threads are those that OMP_NUM_THREADS allows.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, NamedTuple

import numpy as np
import torch

from mcbeit.bench.first_pass import Format, choose_format
from mcbeit.bench.nearest import nearest
from mcbeit.encoder import unit_length
from mcbeit.machine import cpu_name

Search = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

TORCH, FAISS = "torch fp32", "faiss IndexFlatIP"
IMAGENET_FLOP = 2 * 50_000 * 1_281_167 * 768
BLOCK = 250  # queries of one product of plain torch


class Run(NamedTuple):
    """One search."""

    seconds: float
    found: np.ndarray  # indices, [query, k]


def clustered(count: int, dim: int) -> np.ndarray:
    """Unit vectors that lie in clusters, as those of images do."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((32, dim), dtype=np.float32)
    points = rng.standard_normal((1000, 32))[rng.integers(1000, size=count)] + 0.5 * rng.standard_normal((count, 32))
    noise = rng.standard_normal((count, dim), dtype=np.float32)
    return unit_length(points.astype(np.float32) @ directions + 0.5 * noise)


def unstructured(count: int, dim: int) -> np.ndarray:
    """Unit vectors in all directions alike."""
    return unit_length(np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32))


def by_torch(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """One product and one topk per block of queries."""
    stored = torch.from_numpy(gallery).T
    blocks = torch.from_numpy(queries).split(BLOCK)
    return torch.cat([(block @ stored).topk(k, dim=1).indices for block in blocks]).numpy()


def by_faiss(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """Adding to the index, a copy, is part of it."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    return index.search(queries, k)[1]


def ours(first_pass: Literal["auto"] | Format) -> Search:
    """Our search by one first pass."""
    return lambda queries, gallery, k: nearest(queries, gallery, k, first_pass=first_pass).indices


def methods(first_passes: Sequence[Literal["auto"] | Format]) -> dict[str, Search]:
    """What is compared; faiss only if it is installed."""
    others = {TORCH: by_torch, FAISS: by_faiss}
    if importlib.util.find_spec("faiss") is None:
        del others[FAISS]
    return {**others, **{f"ours, {name}": ours(name) for name in first_passes}}


def timed(search: Search, queries: np.ndarray, gallery: np.ndarray, k: int) -> Run:
    """Run a search once."""
    start = time.perf_counter()
    found = search(queries, gallery, k)
    return Run(time.perf_counter() - start, found)


def same_neighbours(some: np.ndarray, others: np.ndarray) -> float:
    """The share of neighbours that two methods both found."""
    return float(np.mean([len(set(a) & set(b)) for a, b in zip(some, others, strict=True)])) / some.shape[1]


def main() -> None:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first-pass", nargs="+", default=["fp32", "auto"], choices=["fp32", "bf16", "int8", "auto"])
    parser.add_argument("--unstructured", action="store_true")
    options = parser.parse_args()
    vectors = (unstructured if options.unstructured else clustered)(options.queries + options.gallery, options.dim)
    queries, gallery = vectors[: options.queries], vectors[options.queries :]
    compared = methods(options.first_pass)
    rounds = [
        {name: timed(search, queries, gallery, options.k) for name, search in compared.items()}
        for _ in range(options.rounds)
    ]
    print(f"{cpu_name()}, {torch.get_num_threads()} threads; auto is {choose_format(torch.device('cpu'))}")
    print(f"{options.queries:,} queries x {options.gallery:,} x {options.dim}, k={options.k}, {options.rounds} rounds")
    flop = 2 * options.queries * options.gallery * options.dim
    for name in compared:
        seconds = median(one[name].seconds for one in rounds)
        ratio = median(
            min(one[other].seconds for other in (TORCH, FAISS) if other in one) / one[name].seconds for one in rounds
        )
        alike = same_neighbours(rounds[0][TORCH].found, rounds[0][name].found)
        speed, minutes = flop / seconds / 1e9, IMAGENET_FLOP / flop * seconds / 60
        print(
            f"{name:17} {seconds:8.2f} s  {options.queries / seconds:6.0f} queries/s  {speed:4.0f} GFLOP/s"
            f"  x {ratio:4.2f}  same neighbours {alike:.5f}  ImageNet-1k {minutes:6.1f} min"
        )


if __name__ == "__main__":
    main()
