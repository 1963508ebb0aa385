"""Which kind of index, with which numbers."""

import pytest

from mcbeit.errors import VectorIndexError
from mcbeit.index_kinds import MAX_FLAT, MAX_HNSW, MIN_IVFPQ, POINTS_PER_CENTROID, IndexConfig


@pytest.mark.parametrize(
    ("count", "kind"),
    [(1, "flat"), (MAX_FLAT, "flat"), (MAX_FLAT + 1, "hnsw"), (MAX_HNSW, "hnsw"), (MAX_HNSW + 1, "ivfpq")],
)
def test_chosen_kind__by_the_number_of_vectors(count: int, kind: str) -> None:
    assert IndexConfig().chosen_kind(count) == kind


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_chosen_kind__what_was_asked_for(kind: str) -> None:
    assert IndexConfig(kind=kind).chosen_kind(MIN_IVFPQ) == kind


def test_chosen_kind__too_few_vectors_for_codes() -> None:
    with pytest.raises(VectorIndexError, match=f"{MIN_IVFPQ - 1} vectors are too few .* use kind flat or hnsw"):
        IndexConfig(kind="ivfpq").chosen_kind(MIN_IVFPQ - 1)


@pytest.mark.parametrize("count", [MIN_IVFPQ, 100_000, 10_000_000])
def test_chosen_lists__each_can_be_learned(count: int) -> None:
    lists = IndexConfig().chosen_lists(count)
    assert 1 <= lists <= count // POINTS_PER_CENTROID
    assert IndexConfig(lists=7).chosen_lists(count) == 7


def test_num_training__enough_for_cells_and_codes() -> None:
    assert IndexConfig().num_training(MIN_IVFPQ) == MIN_IVFPQ
    assert IndexConfig().num_training(100_000) == 64 * 1265
    assert IndexConfig(lists=10).num_training(100_000) == 64 * 256


def test_chosen_probes__no_more_than_lists() -> None:
    assert IndexConfig().chosen_probes(4) == 4
    assert IndexConfig().chosen_probes(1000) == 125
    assert IndexConfig(probes=3).chosen_probes(1000) == 3


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 384, 768, 1280])
def test_chosen_code_bytes__divide_the_dim(dim: int) -> None:
    assert dim % IndexConfig().chosen_code_bytes(dim) == 0
    assert [IndexConfig().chosen_code_bytes(some) for some in (768, 16, 4)] == [96, 8, 4]


def test_chosen_code_bytes__that_do_not_divide() -> None:
    with pytest.raises(VectorIndexError, match=r"index.code_bytes=5 does not divide the dim 12; use one of 1, 2, 3, 4"):
        IndexConfig(code_bytes=5).chosen_code_bytes(12)
