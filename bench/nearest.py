"""The exact nearest neighbours by inner product, of many queries in a gallery that need not fit in memory.

Scores are computed in float64 and rounded to float32; equal ones are ordered by index. A fast first pass decides for
which pairs that is done, and cannot change what is found: whatever it leaves out has at most a known score plus a bound
of its error (`candidates.py`, `first_pass.py`). Where that is not below the score of a query's last neighbour, the
query is searched again in fp32, and if that proves nothing either, as among many duplicates, in float64.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

from mcbeit.bench.candidates import GROUP, Candidates
from mcbeit.bench.first_pass import (
    Format,
    Rounded,
    choose_format,
    error_bound,
    full_precision,
    products,
    require_products,
    round_vectors,
)
from mcbeit.errors import BenchError

TILE = (256, 2048)  # queries and gallery vectors of one product: what stays near a core of a CPU
TILE_ON_GPU = (4096, 65536)
GROWTH = 1.25  # of what has been searched, between two times that the candidates are sorted out
CANDIDATE_BYTES = 512 * 2**20  # of the queries that are searched together
PAIRS = 64  # scored in float64 at once: what stays in a core's cache
MANY = 1000  # vectors per neighbour: with fewer, sorting out candidates costs more than cheap products save
HUGE = 1e15  # numbers whose squares are near the end of float32, or not finite, are no part of the centre
CENTER_SAMPLE = 1024  # gallery vectors whose mean is the centre


class Nearest(NamedTuple):
    """The neighbours of each query, the nearest first."""

    scores: Float32[np.ndarray, "query count"]
    indices: Int64[np.ndarray, "query count"]


class _Search(NamedTuple):
    """Some queries, what they are searched in, and what is wanted."""

    queries: Float[np.ndarray, "query dim"]
    gallery: Float[np.ndarray, "item dim"]
    exclude: Int64[np.ndarray, " query"]
    num_neighbours: int

    def of(self, some: Int64[np.ndarray, " part"]) -> "_Search":
        return self._replace(queries=self.queries[some], exclude=self.exclude[some])


class _Found(NamedTuple):
    """What may be the neighbours, and for which queries that is proven."""

    scores: Float32[np.ndarray, "query count"]
    indices: Int64[np.ndarray, "query count"]
    is_proven: Bool[np.ndarray, " query"]


def nearest(
    queries: Float[np.ndarray | Tensor, "query dim"],
    gallery: Float[np.ndarray | Tensor, "item gallery_dim"],
    count: int,
    *,
    first_pass: Literal["auto"] | Format = "auto",
    device: torch.device | None = None,
    exclude: Int[np.ndarray, " query"] | None = None,
) -> Nearest:
    """The `count` vectors of the gallery with the largest inner products with each query.

    `exclude` holds for each query a gallery index that is not to be found, such as its own, or -1. Vectors of float64
    are rounded to float32 first. The device of the first pass is CUDA if there is one. Raises BenchError if the gallery
    has too few vectors or vectors of another length, if numbers are not finite, and if the device lacks the products of
    the first pass.
    """
    without = np.full(len(queries), -1) if exclude is None else exclude.astype(np.int64)
    search = _Search(_array(queries), _array(gallery), without, count)
    _check(search)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if first_pass == "auto":
        first_pass = choose_format(device) if len(gallery) >= MANY * count else "fp32"
    require_products(first_pass, device)
    found = Nearest(np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64))
    left = np.arange(len(queries))
    for number_format in dict.fromkeys((first_pass, "fp32")):
        left = _fill(found, search, left, number_format, device)
    for some in _parts(left, TILE[0]):
        found.scores[some], found.indices[some] = _in_float64(search.of(some))
    return found


def _array(vectors: np.ndarray | Tensor) -> np.ndarray:
    found = vectors.detach().cpu().float().numpy() if isinstance(vectors, Tensor) else vectors
    return found.astype(np.float32) if found.dtype == np.float64 else found


def _check(search: _Search) -> None:
    dim, count = search.gallery.shape[1], len(search.gallery)
    if search.queries.shape[1] != dim:
        raise BenchError(
            f"queries of {search.queries.shape[1]} numbers have no neighbours among vectors of {dim}; embed both with "
            "the same model and pooling"
        )
    is_one = bool((search.exclude >= 0).any())
    if not 1 <= search.num_neighbours <= count - is_one:
        raise BenchError(
            f"a query has no {search.num_neighbours} neighbours in a gallery of {count} vectors"
            f"{' that it is one of' * is_one}; ask for 1 to {count - is_one}"
        )


def _fill(
    found: Nearest,
    search: _Search,
    left: Int64[np.ndarray, " left"],
    number_format: Format,
    device: torch.device,
) -> Int64[np.ndarray, " unproven"]:
    """Search for the queries that are left; those for which nothing is proven."""
    unproven = [left[:0]]
    for some in _parts(left, CANDIDATE_BYTES // Candidates.bytes_per_query(search.num_neighbours)):
        part = _by_first_pass(search.of(some), number_format, device)
        found.scores[some], found.indices[some] = part.scores, part.indices
        unproven.append(some[~part.is_proven])
    return np.concatenate(unproven)


def _parts(rows: Int64[np.ndarray, " row"], size: int) -> Iterator[Int64[np.ndarray, " part"]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


@full_precision()
def _by_first_pass(search: _Search, number_format: Format, device: torch.device) -> _Found:
    """The neighbours, as far as products in this format prove them."""
    block, width = TILE_ON_GPU if device.type == "cuda" else TILE
    center = _center(search.gallery).to(device)
    queries = round_vectors(search.queries, center, number_format)
    _require_finite(queries, "query", 0)
    exclude = torch.from_numpy(search.exclude).to(device)
    candidates = Candidates(len(search.queries), search.num_neighbours, device)
    error, next_sorting = torch.zeros(len(search.queries), device=device), 0.0
    for start in range(0, len(search.gallery), width):
        chunk = search.gallery[start : start + width]
        items = round_vectors(_padded(chunk), center, number_format)
        _require_finite(items, "gallery", start)
        error = torch.maximum(error, error_bound(queries, items, center))
        for first in range(0, len(error), block):
            rows = slice(first, first + block)
            tile = products(queries.rows(rows), items)
            tile[:, len(chunk) :] = -torch.inf
            _leave_out(tile, exclude[rows] - start)
            candidates.offer(rows, tile, start, error[rows])
        if start + width >= next_sorting:
            candidates.sort_out(slice(None), error)
            next_sorting = GROWTH * (start + width)
    candidates.sort_out(slice(None), error)
    found = _ranked(search, candidates)
    # the scores of the first pass lack the product with the centre
    limit = (candidates.floor.double() + error.double()).cpu().numpy()
    limit += search.queries @ center.double().cpu().numpy()
    return _Found(*found, limit.astype(np.float32) < found.scores[:, -1])


def _require_finite(vectors: Rounded, name: str, start: int) -> None:
    wrong = (~vectors.length.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise BenchError(
            f"{name} vector {start + wrong[0]} has numbers that are not finite, or too large for float32; look at the "
            "model that made it"
        )


def _padded(vectors: Float[np.ndarray, "vector dim"]) -> Float[np.ndarray, "padded dim"]:
    """The last vector repeated, up to a multiple of GROUP."""
    missing = -len(vectors) % GROUP
    return np.pad(vectors, ((0, missing), (0, 0)), mode="edge") if missing else vectors


def _center(gallery: Float[np.ndarray, "item dim"]) -> Float32[Tensor, " dim"]:
    sample = gallery[:: -(-len(gallery) // CENTER_SAMPLE)]
    with np.errstate(invalid="ignore", over="ignore"):
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(np.where(np.abs(mean) < HUGE, mean, np.float32(0)))


def _leave_out(tile: Float32[Tensor, "query item"], columns: Int64[Tensor, " query"]) -> None:
    """Set one column per row to -inf, where there is such a column."""
    (rows,) = ((columns >= 0) & (columns < tile.shape[1])).nonzero(as_tuple=True)
    tile[rows, columns[rows]] = -torch.inf


def _ranked(search: _Search, candidates: Candidates) -> Nearest:
    """The best of the candidates by their true scores."""
    width = max(search.num_neighbours, int(candidates.filled.max()))
    indices, is_kept = candidates.indices[:, :width].cpu(), candidates.scores[:, :width].cpu() > -torch.inf
    rows, places = is_kept.nonzero(as_tuple=True)
    scores = torch.full(indices.shape, -torch.inf)
    scores[rows, places] = torch.from_numpy(_scores(search, rows.numpy(), indices[rows, places].numpy())).float()
    indices, order = indices.sort(dim=1)
    scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    best = slice(0, search.num_neighbours)
    return Nearest(scores[:, best].numpy(), indices.gather(1, order[:, best]).numpy())


def _scores(
    search: _Search, rows: Int64[np.ndarray, " pair"], indices: Int64[np.ndarray, " pair"]
) -> Float64[np.ndarray, " pair"]:
    """The inner products of queries and gallery vectors, read in the order of the gallery."""
    scores, num_threads = np.empty(len(rows)), torch.get_num_threads()

    def score(pairs: Int64[np.ndarray, " pair"]) -> None:
        for some in _parts(pairs, PAIRS):
            vectors = search.queries[rows[some]], search.gallery[indices[some]]
            scores[some] = np.einsum("pd,pd->p", *vectors, dtype=np.float64)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(score, np.array_split(np.argsort(indices), num_threads)))
    return scores


def _in_float64(search: _Search) -> Nearest:
    """The neighbours, without a first pass."""
    queries, exclude = torch.from_numpy(search.queries.astype(np.float64)), torch.from_numpy(search.exclude)
    scores, indices = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(search.gallery), TILE[1]):
        items = torch.from_numpy(search.gallery[start : start + TILE[1]].astype(np.float64))
        tile = (queries @ items.T).float()
        _leave_out(tile, exclude - start)
        here = torch.arange(start, start + len(items)).expand(len(queries), -1)
        scores, order = torch.cat([scores, tile], dim=1).sort(dim=1, descending=True, stable=True)
        scores = scores[:, : search.num_neighbours]
        indices = torch.cat([indices, here], dim=1).gather(1, order[:, : search.num_neighbours])
    return Nearest(scores.numpy(), indices.numpy())
