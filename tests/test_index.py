"""Building and searching: the right neighbours of every kind, of one encoder only, by many threads."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from images import encode, photo, write_images
from vectors import make_embeddings

from mcbeit.embeddings import Embeddings
from mcbeit.errors import VectorIndexError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.index import Index, build_index
from mcbeit.index_kinds import MIN_IVFPQ, IndexConfig

KINDS = ["flat", "hnsw", "ivfpq"]


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    return make_embeddings(MIN_IVFPQ + 50)


@pytest.fixture(scope="module")
def folders(embeddings: Embeddings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index of each kind."""
    found = {kind: tmp_path_factory.mktemp("indices") / kind for kind in KINDS}
    for kind, folder in found.items():
        build_index(embeddings, folder, config=IndexConfig(kind=kind))
    return found


def exact(embeddings: Embeddings, queries: np.ndarray, k: int) -> list[list[str]]:
    order = np.argsort(-(queries @ embeddings.vectors.T), axis=1, kind="stable")[:, :k]
    return [[embeddings.ids[row] for row in near] for near in order]


def recall(found: list[list[str]], wanted: list[list[str]]) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)) / sum(map(len, wanted))


@pytest.mark.parametrize(("kind", "at_least"), [("flat", 1.0), ("hnsw", 0.99), ("ivfpq", 0.95)])
def test_search__finds_the_exact_neighbours(
    embeddings: Embeddings, folders: dict[str, Path], kind: str, at_least: float
) -> None:
    queries = make_embeddings(50, seed=1).vectors
    with Index.open(folders[kind]) as index:
        found = index.search(queries, 10, fingerprint=embeddings.spec.fingerprint)
    ids = [[hit.id for hit in hits] for hits in found]
    assert recall(ids, exact(embeddings, queries, 10)) >= at_least
    assert all(hits == sorted(hits, key=lambda hit: -hit.score) for hits in found)
    assert all(-1 <= hit.score <= 1 for hits in found for hit in hits)


@pytest.mark.parametrize("kind", KINDS)
def test_search__a_vector_finds_itself_with_what_is_known_of_it(
    embeddings: Embeddings, folders: dict[str, Path], kind: str
) -> None:
    with Index.open(folders[kind], verify=True) as index:
        assert len(index) == len(embeddings.ids)
        hit = index.search(embeddings.vectors[7:8], 1, fingerprint=embeddings.spec.fingerprint)[0][0]
    assert (hit.id, hit.path, hit.label, hit.metadata) == ("7.png", "7.png", "odd", None)
    assert hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_contents__are_the_whole_vectors(embeddings: Embeddings, folders: dict[str, Path], kind: str) -> None:
    with Index.open(folders[kind]) as index:
        pieces = list(index.contents())
    assert len(pieces) > 1
    assert [item.id for items, _ in pieces for item in items] == embeddings.ids
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in pieces]), embeddings.vectors, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_search__of_many_threads(embeddings: Embeddings, folders: dict[str, Path], kind: str) -> None:
    fingerprint, answers = embeddings.spec.fingerprint, {}
    with Index.open(folders[kind]) as index:
        alone = [index.search(embeddings.vectors[row : row + 1], 5, fingerprint=fingerprint) for row in range(40)]

        def ask(start: int) -> None:
            for row in range(start, 40, 4):
                answers[row] = index.search(embeddings.vectors[row : row + 1], 5, fingerprint=fingerprint)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answers[row] for row in range(40)] == alone


@pytest.mark.parametrize("kind", KINDS)
def test_open__maps_the_vectors(folders: dict[str, Path], kind: str) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells")
    with Index.open(folders[kind]) as index:
        assert str(folders[kind] / index.manifest.folder / "index.faiss") in maps.read_text()


def test_search__of_images(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", {f"{seed}.png": encode(photo(seed=seed)) for seed in range(4)})
    encoder = FakeEncoder()
    names = [str(path) for path in paths]
    build_index(Embeddings(names, names, encoder.embed(paths), encoder.spec), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        hits = index.search(encoder.embed(paths[2:3]), 2, fingerprint=encoder.spec.fingerprint)[0]
    assert hits[0].path == names[2]
    assert hits[0].score > hits[1].score


def test_search__vectors_of_any_length(tmp_path: Path) -> None:
    """The score is the cosine, whether or not embeddings were normalised."""
    whole = make_embeddings(20)
    build_index(replace(whole, vectors=3 * whole.vectors), tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        hit = index.search(0.1 * whole.vectors[:1], 1, fingerprint=whole.spec.fingerprint)[0][0]
    assert (hit.id, round(hit.score, 5)) == ("0.png", 1.0)


def test_search__more_hits_than_there_are(tmp_path: Path) -> None:
    three = make_embeddings(3)
    build_index(three, tmp_path / "index", config=IndexConfig(kind="hnsw"))
    with Index.open(tmp_path / "index") as index:
        assert len(index.search(three.vectors[:1], 100, fingerprint=three.spec.fingerprint)[0]) == 3
        assert index.search(three.vectors[:0], 2, fingerprint=three.spec.fingerprint) == []


def test_search__fewer_hits_where_few_cells_are_looked_into(embeddings: Embeddings, tmp_path: Path) -> None:
    config = IndexConfig(kind="ivfpq", lists=200, probes=1)
    build_index(embeddings, tmp_path / "index", config=config)
    with Index.open(tmp_path / "index") as index:
        hits = index.search(embeddings.vectors[:1], 1000, fingerprint=embeddings.spec.fingerprint)[0]
    assert 1 <= len(hits) < 1000
    assert hits[0].id == "0.png"
    assert all(np.isfinite(hit.score) for hit in hits)


def test_search__another_encoder_is_refused(folders: dict[str, Path]) -> None:
    other = FakeEncoder(dim=16, image_size=32).spec
    with (
        Index.open(folders["flat"]) as index,
        pytest.raises(VectorIndexError, match=r"cannot be compared\. Ask with the same model and the same options"),
    ):
        index.search(make_embeddings(1).vectors, 1, fingerprint=other.fingerprint)


def test_search__vectors_that_do_not_fit(folders: dict[str, Path]) -> None:
    with Index.open(folders["flat"]) as index:
        fingerprint = index.spec.fingerprint
        with pytest.raises(VectorIndexError, match="has 8 numbers, vectors of the index 16"):
            index.search(np.zeros((1, 8), np.float32), 1, fingerprint=fingerprint)
        with pytest.raises(VectorIndexError, match="not finite"):
            index.search(np.full((1, 16), np.nan, np.float32), 1, fingerprint=fingerprint)
        with pytest.raises(VectorIndexError, match="k is 0"):
            index.search(np.zeros((1, 16), np.float32), 0, fingerprint=fingerprint)


def test_build_index__paths_and_metadata(tmp_path: Path) -> None:
    two = make_embeddings(2)
    build_index(two, tmp_path / "index", paths=["x/0.png", None], metadata=[{"width": 5}, None])
    with Index.open(tmp_path / "index") as index:
        hits = index.search(two.vectors[:1], 2, fingerprint=two.spec.fingerprint)[0]
    assert [(hit.path, hit.metadata) for hit in hits] == [("x/0.png", {"width": 5}), (None, None)]


def test_build_index__no_embeddings(tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="no embeddings"):
        build_index(make_embeddings(0), tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_build_index__numbers_that_are_not_finite(tmp_path: Path) -> None:
    bad = make_embeddings(9000)
    bad.vectors[8500, 3] = np.inf
    with pytest.raises(VectorIndexError, match=r"the vector of '8500.png' holds numbers that are not finite"):
        build_index(bad, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_build_index__images_that_could_not_be_read_are_left_out(tmp_path: Path) -> None:
    """Embeddings may keep a row of nan for each; the others keep what is known of them."""
    some = make_embeddings(9000)
    some.vectors[[0, 8300]] = np.nan
    assert build_index(some, tmp_path / "index").count == 8998
    with Index.open(tmp_path / "index") as index:
        ids = [item.id for items, _ in index.contents() for item in items]
        hit = index.search(some.vectors[8301:8302], 1, fingerprint=some.spec.fingerprint)[0][0]
    assert ids == [name for name in some.ids if name not in ("0.png", "8300.png")]
    assert (hit.id, hit.label) == ("8301.png", "odd")


def test_build_index__nothing_that_could_be_read(tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="no embeddings"):
        build_index(replace(make_embeddings(2), vectors=np.full((2, 16), np.nan, np.float32)), tmp_path / "index")


def test_build_index__labels_without_names_are_numbers(tmp_path: Path) -> None:
    some = replace(make_embeddings(3), classes=None)
    build_index(some, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        assert index.search(some.vectors[1:2], 1, fingerprint=some.spec.fingerprint)[0][0].label == "1"


def test_build_index__paths_of_another_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an entry per vector"):
        build_index(make_embeddings(3), tmp_path / "index", paths=["a"])


def test_build_index__the_same_id_twice(tmp_path: Path) -> None:
    twice = replace(make_embeddings(3), ids=["a", "b", "a"])
    with pytest.raises(VectorIndexError, match="two vectors have the id 'a'"):
        build_index(twice, tmp_path / "index")


def test_open__a_zero_vector_is_like_nothing(tmp_path: Path) -> None:
    some = make_embeddings(3)
    some.vectors[1] = 0
    build_index(some, tmp_path / "index")
    with Index.open(tmp_path / "index") as index:
        hits = index.search(some.vectors[:1], 3, fingerprint=some.spec.fingerprint)[0]
    assert [hit.score for hit in hits if hit.id == "1.png"] == [0.0]
