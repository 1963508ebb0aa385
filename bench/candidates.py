"""What may still be among the nearest neighbours of some queries, while scores with errors come in tile by tile."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

GROUP = 16  # scores of which only the largest is compared with the floor at first: a pass over a tile is dear


class Hits(NamedTuple):
    """Some entries of a matrix, row by row."""

    rows: Int64[Tensor, " hit"]
    columns: Int64[Tensor, " hit"]
    scores: Float32[Tensor, " hit"]
    number: Int64[Tensor, " query"]  # in each row

    @classmethod
    def among(cls, scores: Float32[Tensor, "query item"], rows: Tensor, columns: Tensor) -> "Hits":
        """The given entries."""
        return cls(rows, columns, scores[rows, columns], torch.bincount(rows, minlength=len(scores)))


class Candidates:
    """The best scores of each query so far, and the indices they belong to, in any order; -inf where there is none.

    Whatever was offered and is not kept has at most the score `floor`.
    """

    def __init__(self, num_queries: int, count: int, device: torch.device) -> None:
        """`count` neighbours are wanted; a few times as many are kept, as errors may have changed the order."""
        self.count, self.most = count, 4 * count + 128
        self.scores = torch.full((num_queries, 2 * self.most), -torch.inf, device=device)
        self.indices = torch.zeros(self.scores.shape, dtype=torch.int64, device=device)
        self.filled = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self.floor = torch.full((num_queries,), -torch.inf, device=device)

    @staticmethod
    def bytes_per_query(count: int) -> int:
        """The memory that a query takes."""
        return 2 * (4 * count + 128) * (4 + 8)

    def offer(
        self, queries: slice, tile: Float32[Tensor, "query item"], start: int, error: Float32[Tensor, " query"]
    ) -> None:
        """Take what matters of the scores of some queries with the items from `start` on, wrong by up to `error`.

        The number of items is a multiple of GROUP.
        """
        if not bool(self.filled[queries].any()):
            self._raise_floor(queries, tile, error)
        hits = above(tile, self.floor[queries])
        if hits.number.max() > self.most:
            self._raise_floor(queries, tile, error)
            hits = above(tile, self.floor[queries])
        if (self.filled[queries] + hits.number).max() > 2 * self.most:
            self.sort_out(queries, error)
        self._append(queries, hits, hits.columns + start)

    def sort_out(self, queries: slice, error: Float32[Tensor, " query"]) -> None:
        """Raise the floors of some queries as far as what they have allows, and drop what is below."""
        width = int(self.filled[queries].max())
        scores, indices = self.scores[queries, :width], self.indices[queries, :width]
        self._raise_floor(queries, scores, error)
        kept = Hits.among(scores, *(scores > self.floor[queries, None]).nonzero(as_tuple=True))
        kept_indices = indices[kept.rows, kept.columns]
        scores.fill_(-torch.inf)
        self.filled[queries] = 0
        self._append(queries, kept, kept_indices)

    def _raise_floor(
        self, queries: slice, scores: Float32[Tensor, "query score"], error: Float32[Tensor, " query"]
    ) -> None:
        """Above all but the `most` best of these scores, and above what is worse than `count` of them in truth."""
        best = largest(scores, min(self.most + 1, scores.shape[1]))
        if best.shape[1] > self.most:
            self.floor[queries] = torch.maximum(self.floor[queries], best.amin(dim=1))
        if best.shape[1] >= self.count:
            reachable = largest(best, self.count).amin(dim=1) - 2.01 * error
            self.floor[queries] = torch.maximum(self.floor[queries], reachable)

    def _append(self, queries: slice, hits: Hits, indices: Int64[Tensor, " hit"]) -> None:
        before = (hits.number.cumsum(0) - hits.number - self.filled[queries])[hits.rows]
        places = torch.arange(len(before), device=before.device) - before
        self.scores[queries][hits.rows, places] = hits.scores
        self.indices[queries][hits.rows, places] = indices
        self.filled[queries] += hits.number


def above(scores: Float32[Tensor, "query item"], floor: Float32[Tensor, " query"]) -> Hits:
    """The scores above the floors of their rows; the number of items is a multiple of GROUP."""
    groups = scores.view(len(scores), GROUP, -1)
    rows, members = (groups.amax(dim=1) > floor[:, None]).nonzero(as_tuple=True)
    hits, place = (groups[rows, :, members] > floor[rows, None]).nonzero(as_tuple=True)
    return Hits.among(scores, rows[hits], place * groups.shape[2] + members[hits])


def largest(scores: Float32[Tensor, "query score"], count: int) -> Float32[Tensor, "query count"]:
    """The largest scores of each row in any order. On a CPU by numpy, ten times faster than torch's topk."""
    if scores.device.type == "cpu":
        start = scores.shape[1] - count
        return torch.from_numpy(np.partition(scores.numpy(), start, axis=1)[:, start:])
    return scores.topk(count, dim=1, sorted=False).values
