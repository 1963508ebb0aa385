"""Ids, paths, labels and metadata in SQLite."""

import os
import threading
from pathlib import Path

import pytest

from mcbeit.errors import VectorIndexError
from mcbeit.index_items import Item, Items, write_items

ODD_NAME = os.fsdecode(b"caf\xe9 \n.jpg")  # Latin-1, as old disks have it
ITEMS = [
    Item("a"),
    Item("b", "b.jpg", "cat", {"width": 3, "tags": ["x", None]}),
    Item(ODD_NAME, ODD_NAME, "Ünïcode 日本"),
]


def written(path: Path) -> Items:
    write_items(path, ITEMS)
    return Items(path)


def test_rows__by_number(tmp_path: Path) -> None:
    items = written(tmp_path / "items.sqlite")
    assert items.rows([2, 0]) == {0: ITEMS[0], 2: ITEMS[2]}
    assert items.rows([]) == {}
    items.close()


def test_range__in_order(tmp_path: Path) -> None:
    items = written(tmp_path / "items.sqlite")
    assert items.range(0, 3) == ITEMS
    assert items.range(1, 2) == ITEMS[1:2]
    items.close()


def test_rows__of_many_threads(tmp_path: Path) -> None:
    write_items(tmp_path / "items.sqlite", (Item(str(number)) for number in range(1000)))
    items, wrong = Items(tmp_path / "items.sqlite"), []

    def ask(start: int) -> None:
        for number in range(start, 1000, 4):
            if items.rows([number])[number].id != str(number):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    items.close()
    assert wrong == []


def test_items__leave_no_files_beside(tmp_path: Path) -> None:
    items = written(tmp_path / "items.sqlite")
    items.range(0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["items.sqlite"]
    items.close()


def test_items__a_name_with_signs_of_addresses(tmp_path: Path) -> None:
    folder = tmp_path / "a?b#c%20"
    folder.mkdir()
    items = written(folder / "items.sqlite")
    assert items.range(0, 1) == ITEMS[:1]
    items.close()


def test_write_items__the_same_id_twice(tmp_path: Path) -> None:
    with pytest.raises(VectorIndexError, match="two vectors have the id 'x'"):
        write_items(tmp_path / "items.sqlite", [Item("x"), Item("y"), Item("x")])


def test_items__another_file(tmp_path: Path) -> None:
    (tmp_path / "items.sqlite").write_bytes(b"no database" * 100)
    items = Items(tmp_path / "items.sqlite")
    with pytest.raises(VectorIndexError, match="cannot be read: file is not a database; build the index again"):
        items.rows([1])
    items.close()
