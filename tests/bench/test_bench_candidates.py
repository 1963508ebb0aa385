"""What is kept of scores with errors."""

import torch

from mcbeit.bench.candidates import GROUP, Candidates, above, largest

CPU = torch.device("cpu")
ALL = slice(None)


def scores(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def kept(candidates: Candidates, query: int) -> set[int]:
    return set(candidates.indices[query, candidates.scores[query] > -torch.inf].tolist())


def test_above__is_every_score_over_the_floor_of_its_row() -> None:
    tile, floor = scores(5, 10 * GROUP), torch.tensor([-9.0, 0.0, 1.0, 2.0, 9.0])
    hits = above(tile, floor)
    expected = (tile > floor[:, None]).nonzero()
    order = (hits.rows * tile.shape[1] + hits.columns).argsort()
    assert torch.equal(torch.stack([hits.rows, hits.columns], dim=1)[order], expected)
    assert torch.equal(hits.scores, tile[hits.rows, hits.columns])
    assert hits.number.tolist() == (tile > floor[:, None]).sum(dim=1).tolist()


def test_largest__in_any_order() -> None:
    tile = scores(4, 50)
    assert torch.equal(largest(tile, 7).sort(dim=1, descending=True).values, tile.topk(7, dim=1).values)


def test_candidates__keep_all_that_may_be_among_the_best() -> None:
    tile, error = scores(6, 4096), torch.full((6,), 0.1)
    candidates = Candidates(6, 3, CPU)
    for start in range(0, 4096, 512):
        for queries in (slice(0, 4), slice(4, 8)):
            candidates.offer(queries, tile[queries, start : start + 512].contiguous(), start, error[queries])
    candidates.sort_out(ALL, error)
    for query in range(6):
        third = tile[query].topk(3).values[-1]
        assert kept(candidates, query) == set((tile[query] > third - 0.201).nonzero().flatten().tolist())


def test_candidates__keep_no_more_than_fit_and_tell_the_floor() -> None:
    tile, error = scores(2, 4096), torch.full((2,), 9.0)
    candidates = Candidates(2, 3, CPU)
    for start in range(0, 4096, 1024):
        candidates.offer(ALL, tile[:, start : start + 1024].contiguous(), start, error)
    candidates.sort_out(ALL, error)
    for query in range(2):
        found = kept(candidates, query)
        assert len(found) == candidates.most
        assert found == set(tile[query].topk(candidates.most).indices.tolist())
        left_out = [column for column in range(4096) if column not in found]
        assert tile[query, left_out].max() <= candidates.floor[query]
