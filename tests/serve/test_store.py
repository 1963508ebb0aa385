"""Indices that can be written to: what they answer, what they refuse, and that nothing acknowledged is lost."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from store_writer import OWN, SPEC, item, killed_writer, vector

from mcbeit.encoder import EncoderSpec
from mcbeit.errors import VectorIndexError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.store_folder import StoreFolder
from mcbeit.serve.store_items import Question, StoreError, StoreItem

FILE = "items.sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    found = StoreFolder(tmp_path / "indexes", max_vectors=2000)
    found.create("shop", SPEC)
    yield found
    found.close()


def names(folder: StoreFolder, **question: Any) -> list[str]:
    return [hit.id for hit in folder.search("shop", Question(**question), OWN)]


def test_search__is_exact_and_sorted(folder: StoreFolder) -> None:
    items = [item(f"i{seed}", seed) for seed in range(200)]
    assert folder.upsert("shop", items, OWN) == 200
    scores = np.stack([one.vector for one in items]) @ vector(999)
    best = [f"i{index}" for index in np.argsort(-scores)]
    hits = folder.search("shop", Question(vector(999) * 7, k=10, with_vectors=True), OWN)
    assert [hit.id for hit in hits] == best[:10]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:10], atol=1e-6)
    assert hits[0].vector is not None
    np.testing.assert_allclose(hits[0].vector, vector(int(best[0][1:])), atol=1e-6)
    pages = [name for offset in range(0, 200, 7) for name in names(folder, vector=vector(999), k=7, offset=offset)]
    assert pages == best


def test_search__like_an_item_without_itself(folder: StoreFolder) -> None:
    folder.upsert("shop", [item(f"i{seed}", seed) for seed in range(20)], OWN)
    found = names(folder, id="i3", k=30)
    assert len(found) == 19
    assert "i3" not in found


def test_upsert__replaces_and_says_what_is_new(folder: StoreFolder) -> None:
    assert folder.upsert("shop", [item("a", 1), item("b", 2)], OWN) == 2
    assert folder.upsert("shop", [item("b", 3, colour="red"), item("c", 4)], OWN) == 1
    assert folder.upsert("shop", [item("c", 5), item("c", 6)], OWN) == 0  # the last counts
    assert folder.facts("shop").num_items == 3
    np.testing.assert_allclose(folder.get("shop", "c").vector, vector(6), atol=1e-6)
    assert folder.get("shop", "b").metadata == {"colour": "red"}
    assert names(folder, vector=vector(2), k=1) != ["b"] or names(folder, vector=vector(3), k=1) == ["b"]
    assert folder.search("shop", Question(vector(3), k=1), OWN)[0].score == pytest.approx(1, abs=1e-5)


def test_delete(folder: StoreFolder) -> None:
    folder.upsert("shop", [item(f"i{seed}", seed) for seed in range(10)], OWN)
    assert folder.delete("shop", ["i1", "i2", "none"]) == 2
    assert folder.delete("shop", ["i1"]) == 0
    assert set(names(folder, vector=vector(1), k=50)) == {f"i{seed}" for seed in (0, *range(3, 10))}
    with pytest.raises(StoreError, match="no item 'i1'"):
        folder.get("shop", "i1")


def test_delete__of_many_makes_room(folder: StoreFolder) -> None:
    for start in range(0, 1500, 500):
        folder.upsert("shop", [item(f"i{seed}", seed) for seed in range(start, start + 500)], OWN)
    folder.delete("shop", [f"i{seed}" for seed in range(1200)])
    assert folder.facts("shop").num_items == 300
    assert names(folder, vector=vector(1300), k=1) == ["i1300"]
    folder.upsert("shop", [item(f"n{seed}", seed) for seed in range(1200)], OWN)
    assert names(folder, vector=vector(5), k=1) == ["n5"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"colour": "red"}, {"a", "c"}),
        ({"colour": ["red", "blau-grün"]}, {"a", "b", "c"}),
        ({"colour": "red", "size": 3}, {"c"}),
        ({"size": [1, 3]}, {"a", "c"}),
        ({"sold": True}, {"b"}),
        ({"sold": None}, {"d"}),
        ({"colour": 'say "x"\\'}, {"d"}),
        ({"none": 1}, set()),
        ({"colour": []}, set()),
    ],
)
def test_filter(folder: StoreFolder, wanted: Any, found: set[str]) -> None:
    items = [
        item("a", 1, colour="red", size=1),
        item("b", 2, colour="blau-grün", sold=True),
        item("c", 3, colour="red", size=3),
        item("d", 4, colour='say "x"\\', sold=None),
        item("e", 5),
    ]
    folder.upsert("shop", items, OWN)
    assert set(names(folder, vector=vector(9), filter=wanted)) == found
    folder.delete("shop", ["a"])
    assert set(names(folder, vector=vector(9), filter=wanted)) == found - {"a"}


def test_dedup(folder: StoreFolder) -> None:
    near = vector(1) + 0.01 * vector(2)
    folder.upsert("shop", [item("a", 1), StoreItem("twin", near), item("b", 5)], OWN)
    assert names(folder, vector=vector(1), k=2) == ["a", "twin"]
    assert names(folder, vector=vector(1), k=2, dedup=0.95) == ["a", "b"]
    assert names(folder, vector=vector(1), k=1, offset=1, dedup=0.95) == ["b"]
    assert names(folder, vector=vector(1), k=1000, dedup=1.0) == ["a", "twin", "b"]


def test_page__in_order_while_items_come_and_go(folder: StoreFolder) -> None:
    folder.upsert("shop", [item(f"i{seed}", seed) for seed in range(10)], OWN)
    first, mark = folder.page("shop", None, 4)
    folder.delete("shop", ["i1", "i5"])
    folder.upsert("shop", [item("new", 11)], OWN)
    second, mark = folder.page("shop", mark, 4)
    third, mark = folder.page("shop", mark, 4)
    assert [one.id for one in [*first, *second, *third]] == [
        "i0",
        "i1",
        "i2",
        "i3",
        "i4",
        "i6",
        "i7",
        "i8",
        "i9",
        "new",
    ]
    assert mark is None


def other_spec() -> EncoderSpec:
    return FakeEncoder(dim=8, image_size=32).spec


@pytest.mark.parametrize(
    ("ask", "code", "told"),
    [
        (lambda f: f.facts("none"), "not_found", "PUT /v1/indexes/NAME makes one"),
        (lambda f: f.facts("../etc"), "not_found", "no index"),
        (lambda f: f.create("Shop", SPEC), "invalid", "small letters"),
        (lambda f: f.create("../shop", SPEC), "invalid", "small letters"),
        (lambda f: f.create("shop", other_spec()), "exists", "of another model"),
        (lambda f: f.upsert("shop", [item("a", 1)], "f" * 64), "wrong_model", "cannot be compared"),
        (lambda f: f.search("shop", Question(vector(1)), "f" * 64), "wrong_model", "cannot be compared"),
        (lambda f: f.search("shop", Question(), OWN), "invalid", "exactly one"),
        (lambda f: f.search("shop", Question(vector(1), "a"), OWN), "invalid", "exactly one"),
        (lambda f: f.search("shop", Question(id="none"), OWN), "not_found", "no item 'none'"),
        (lambda f: f.search("shop", Question(vector(1), k=0), OWN), "invalid", "k must be 1"),
        (lambda f: f.search("shop", Question(vector(1), offset=10_000), OWN), "invalid", "at most 10000"),
        (lambda f: f.search("shop", Question(vector(1), dedup=2), OWN), "invalid", "it is a cosine"),
        (lambda f: f.search("shop", Question(vector(1), k=1001, dedup=1.0), OWN), "invalid", "at most 1000"),
        (lambda f: f.search("shop", Question(vector(1), k=1001, with_vectors=True), OWN), "invalid", "at most 1000"),
        (lambda f: f.search("shop", Question(vector(1), filter={'a" or 1': 1}), OWN), "invalid", "is no key"),
        (lambda f: f.search("shop", Question(vector(1)[:4]), OWN), "invalid", "4 numbers, not 8"),
        (lambda f: f.upsert("shop", [StoreItem("a", vector(1) * np.nan)], OWN), "invalid", "not finite"),
        (lambda f: f.upsert("shop", [StoreItem("a", vector(1) * 0)], OWN), "invalid", "only zeros"),
        (lambda f: f.upsert("shop", [item("", 1)], OWN), "invalid", "1 to 512 characters"),
        (lambda f: f.upsert("shop", [item("a" * 513, 1)], OWN), "invalid", "1 to 512 characters"),
        (lambda f: f.upsert("shop", [item("a", 1, x="x" * 70_000)], OWN), "invalid", "more than 65536 bytes"),
        (lambda f: f.upsert("shop", [item("a", 1, x=float("nan"))], OWN), "invalid", "no JSON"),
        (lambda f: f.upsert("shop", [item(f"i{n}", n) for n in range(2001)], OWN), "full", "take a vector database"),
        (lambda f: f.page("shop", None, 0), "invalid", "limit"),
        (lambda f: f.page("shop", "x", 5), "invalid", "limit"),
        (lambda f: f.drop("none"), "not_found", "no index"),
    ],
)
def test_mistakes__change_nothing(folder: StoreFolder, ask: Any, code: str, told: str) -> None:
    with pytest.raises(StoreError, match=told) as caught:
        ask(folder)
    assert caught.value.code == code
    assert folder.facts("shop").num_items == 0


def test_folder__many_indices(folder: StoreFolder) -> None:
    assert folder.create("other", other_spec())
    assert not folder.create("shop", SPEC)
    assert folder.names() == ["other", "shop"]
    folder.drop("shop")
    assert [facts.name for facts in folder.all_facts()] == ["other"]
    folder.create("shop", other_spec())


def test_folder__one_writer(folder: StoreFolder) -> None:
    with pytest.raises(VectorIndexError, match="open in another process; an index has one writer"):
        StoreFolder(folder.path)


def reopened(folder: StoreFolder) -> StoreFolder:
    folder.close()
    return StoreFolder(folder.path)


def test_reopen__everything_is_there(folder: StoreFolder) -> None:
    folder.upsert("shop", [item(f"i{seed}", seed, number=seed) for seed in range(50)], OWN)
    folder.delete("shop", ["i7"])
    before = folder.search("shop", Question(vector(3), k=50), OWN)
    again = reopened(folder)
    assert again.search("shop", Question(vector(3), k=50), OWN) == before
    again.close()
    folder._descriptor = StoreFolder(folder.path)._descriptor  # so that the fixture has something to close


def test_damage__is_one_clear_error(folder: StoreFolder, tmp_path: Path) -> None:
    folder.upsert("shop", [item(f"i{seed}", seed) for seed in range(300)], OWN)
    folder.close()
    copies = [tmp_path / name for name in ("bit", "cut", "garbage")]
    for copy in copies:
        shutil.copytree(folder.path, copy)
    with sqlite3.connect(copies[0] / "shop" / FILE) as db:
        db.execute("UPDATE items SET vector = zeroblob(32) WHERE id = 'i9'")
    db.close()
    data = (copies[1] / "shop" / FILE).read_bytes()
    (copies[1] / "shop" / FILE).write_bytes(data[: len(data) // 2])
    (copies[2] / "shop" / FILE).write_bytes(b"garbage" * 1000)
    for copy in copies:
        damaged = StoreFolder(copy)
        with pytest.raises(StoreError, match=r"'shop' is damaged.*restore it from a backup"):
            damaged.facts("shop")
        damaged.close()
    folder._descriptor = StoreFolder(folder.path)._descriptor


NAMES = st.sampled_from("abcdefgh")


class Store(RuleBasedStateMachine):
    """An index and a dict, to which the same is done."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.folder = StoreFolder(self.path)
        self.folder.create("shop", SPEC)
        self.model: dict[str, int] = {}

    @rule(changes=st.lists(st.tuples(NAMES, st.integers(0, 50)), max_size=5))
    def upsert(self, changes: list[tuple[str, int]]) -> None:
        new = {name for name, _ in changes} - self.model.keys()
        assert self.folder.upsert("shop", [item(name, seed) for name, seed in changes], OWN) == len(new)
        self.model.update(changes)

    @rule(gone=st.lists(NAMES, max_size=4))
    def delete(self, gone: list[str]) -> None:
        assert self.folder.delete("shop", gone) == len(set(gone) & self.model.keys())
        for name in gone:
            self.model.pop(name, None)

    @rule()
    def reopen(self) -> None:
        self.folder.close()
        self.folder = StoreFolder(self.path)

    @invariant()
    def is_the_same(self) -> None:
        hits = self.folder.search("shop", Question(vector(99), k=50), OWN)
        assert {hit.id for hit in hits} == self.model.keys()
        for hit in hits:
            assert hit.score == pytest.approx(float(vector(self.model[hit.id]) @ vector(99)), abs=1e-5)

    def teardown(self) -> None:
        self.folder.close()
        shutil.rmtree(self.path)


class TestStore(Store.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


def test_kill__nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    model: dict[str, int] = {}
    assert sum(killed_writer(tmp_path, seed, model) for seed in range(6)) > 50
