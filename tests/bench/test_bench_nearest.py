"""Exact neighbours, whatever the first pass rounds away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from mcbeit.bench import nearest as module
from mcbeit.bench.first_pass import Format, Rounded, has_int8_products, round_vectors
from mcbeit.bench.nearest import Nearest, nearest
from mcbeit.errors import BenchError

FORMATS = [name for name in get_args(Format) if name != "int8" or has_int8_products(torch.device("cpu"))]
RNG = np.random.default_rng(0)


def normal(count: int, dim: int = 24) -> np.ndarray:
    return RNG.standard_normal((count, dim), dtype=np.float32)


def by_definition(
    queries: np.ndarray, gallery: np.ndarray, count: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sort everything: float64 scores rounded to float32, equal ones by index."""
    scores = (queries.astype(np.float64) @ gallery.astype(np.float64).T).astype(np.float32)
    if exclude is not None:
        (rows,) = np.nonzero(exclude >= 0)
        scores[rows, exclude[rows]] = -np.inf
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, indices, axis=1), indices


def assert_same(found: Nearest, expected: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.array_equal(found.indices, expected[1])
    assert np.array_equal(found.scores, expected[0])


@pytest.fixture(params=[(256, 2048), (7, 32)], ids=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same small search as one product and as many."""
    monkeypatch.setattr(module, "TILE", request.param)


def test_nearest__of_three_vectors() -> None:
    gallery = np.array([[0, 1], [1, 0], [0.6, 0.8]], dtype=np.float32)
    found = nearest(np.array([[2, 0]], dtype=np.float32), gallery, 2)
    assert found.indices.tolist() == [[1, 2]]
    assert found.scores.tolist() == [[2, pytest.approx(1.2)]]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("first_pass", FORMATS)
@pytest.mark.parametrize("count", [1, 20, 600])
def test_nearest__is_what_sorting_everything_gives(first_pass: Format, count: int) -> None:
    queries, gallery = normal(20), normal(1000)
    assert_same(nearest(queries, gallery, count, first_pass=first_pass), by_definition(queries, gallery, count))


HOSTILE: dict[str, Callable[[int], np.ndarray]] = {
    "near duplicates": lambda n: normal(5)[RNG.integers(5, size=n)] + 1e-4 * normal(n),
    "exact duplicates": lambda n: normal(50)[RNG.integers(50, size=n)],
    "all the same": lambda n: np.ones((n, 24), np.float32),
    "a narrow cone": lambda n: 1 + 1e-3 * normal(n),
    "many lengths": lambda n: normal(n) * np.exp(3 * normal(n, 1)),
    "one large number": lambda n: normal(n) * np.array([1000] + 23 * [1], np.float32),
    "zeros": lambda n: normal(n) * (normal(n, 1) > 0),
    "the best last": lambda n: normal(n)[np.argsort(normal(n)[:, 0])] + np.linspace(0, 3, n, dtype=np.float32)[:, None],
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("first_pass", FORMATS)
@pytest.mark.parametrize("kind", HOSTILE)
def test_nearest__is_exact_for_hostile_vectors(first_pass: Format, kind: str) -> None:
    queries, gallery = HOSTILE[kind](20), HOSTILE[kind](1500)
    assert_same(nearest(queries, gallery, 10, first_pass=first_pass), by_definition(queries, gallery, 10))


def counted(monkeypatch: pytest.MonkeyPatch, name: str, asked: list[int]) -> None:
    """Note of how many queries a way to search is asked."""
    way = getattr(module, name)

    def and_noted(search: Any, *rest: Any) -> Any:
        asked.append(len(search.queries))
        return way(search, *rest)

    monkeypatch.setattr(module, name, and_noted)


def test_nearest__searches_again_what_it_cannot_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for name in ("_by_first_pass", "_in_float64"):
        counted(monkeypatch, name, asked)
    gallery = np.zeros((1300, 24), np.float32)
    gallery[:100, :8] = normal(100, dim=8)  # apart
    gallery[100:700, 8:16] = 1 + 1e-3 * normal(600, dim=8)  # alike
    gallery[700:, 16:] = normal(1, dim=8)  # the same
    queries = gallery[[0, 1, 2, 100, 101, 700]]
    assert_same(nearest(queries, gallery, 3, first_pass="bf16"), by_definition(queries, gallery, 3))
    assert asked == [6, 3, 1]


@pytest.mark.usefixtures("tiles")
def test_nearest__leaves_the_query_itself_out() -> None:
    vectors = normal(500)
    own = np.arange(500)
    assert_same(nearest(vectors, vectors, 5, exclude=own), by_definition(vectors, vectors, 5, own))
    some = np.where(own % 2, own, -1)
    found = nearest(vectors, vectors, 5, exclude=some)
    assert_same(found, by_definition(vectors, vectors, 5, some))
    assert (found.indices == own[:, None]).any(axis=1).tolist() == (some < 0).tolist()


def test_nearest__finds_all_there_are() -> None:
    queries, gallery = normal(3), normal(37)
    assert_same(nearest(queries, gallery, 37), by_definition(queries, gallery, 37))
    assert nearest(queries, gallery[:1], 1).indices.tolist() == [[0], [0], [0]]
    assert nearest(queries[:0], gallery, 5).indices.shape == (0, 5)


def test_nearest__reads_a_mapped_gallery_of_halves(tmp_path: Path) -> None:
    queries, gallery = normal(5), normal(300).astype(np.float16)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    assert_same(nearest(queries, mapped, 7), by_definition(queries, gallery, 7))


def test_nearest__auto_is_cheap_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    formats: list[str] = []

    def noted(vectors: np.ndarray, center: torch.Tensor, number_format: Format) -> Rounded:
        formats.append(number_format)
        return round_vectors(vectors, center, number_format)

    monkeypatch.setattr(module, "choose_format", lambda device: "bf16")
    monkeypatch.setattr(module, "round_vectors", noted)
    queries, gallery = normal(5), normal(2047)
    for count in (2, 3):
        assert_same(nearest(queries, gallery, count), by_definition(queries, gallery, count))
    assert formats == ["bf16", "bf16", "fp32", "fp32"]


def test_nearest__rounds_doubles_to_float32() -> None:
    queries, gallery = (1 + 1e-4 * RNG.standard_normal((count, 24)) for count in (5, 300))
    assert_same(nearest(queries, gallery, 7), by_definition(queries.astype(np.float32), gallery.astype(np.float32), 7))


def test_nearest__takes_tensors() -> None:
    queries, gallery = normal(5), normal(300)
    found = nearest(torch.from_numpy(queries).double(), torch.from_numpy(gallery), 7)
    assert_same(found, by_definition(queries, gallery, 7))
    halves = nearest(torch.from_numpy(queries), torch.from_numpy(gallery).bfloat16(), 7)
    assert_same(halves, by_definition(queries, torch.from_numpy(gallery).bfloat16().float().numpy(), 7))


def test_nearest__does_not_depend_on_what_torch_may_round() -> None:
    queries, gallery = normal(20), normal(1000)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        found = nearest(queries, gallery, 7, first_pass="fp32")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert_same(found, by_definition(queries, gallery, 7))


def test_nearest__errors() -> None:
    with pytest.raises(BenchError, match=r"queries of 24 numbers have no neighbours among vectors of 12"):
        nearest(normal(2), normal(50, dim=12), 3)
    with pytest.raises(BenchError, match=r"no 51 neighbours in a gallery of 50 vectors; ask for 1 to 50"):
        nearest(normal(2), normal(50), 51)
    with pytest.raises(BenchError, match=r"no 50 neighbours .* that it is one of; ask for 1 to 49"):
        nearest(normal(2), normal(50), 50, exclude=np.array([0, 1]))
    with pytest.raises(BenchError, match=r"no 0 neighbours"):
        nearest(normal(2), normal(50), 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("first_pass", FORMATS)
def test_nearest__refuses_what_is_not_finite(first_pass: Format, wrong: float) -> None:
    queries, gallery = normal(5), normal(3000)
    gallery[2700] = wrong
    with pytest.raises(BenchError, match=r"gallery vector 2700 has numbers that are not finite, or too large"):
        nearest(queries, gallery, 3, first_pass=first_pass)
    queries[2] = wrong
    with pytest.raises(BenchError, match=r"query vector 2 has numbers"):
        nearest(queries, gallery, 3, first_pass=first_pass)
