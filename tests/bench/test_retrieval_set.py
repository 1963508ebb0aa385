from pathlib import Path

import numpy as np
import pytest

from mcbeit.bench.retrieval_set import Relevance, by_class, judge
from mcbeit.sources import FileSource


def source(*classes: str) -> FileSource:
    """Images of these classes, none of which is there."""
    names = sorted(set(classes))
    return FileSource(
        Path("/nowhere"), [f"{i}.png" for i in range(len(classes))], [names.index(c) for c in classes], names
    )


def indices(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def lists(arrays: object) -> list[list[int]]:
    return [array.tolist() for array in arrays]  # type: ignore[attr-defined]


def test_by_class__is_by_the_names_of_classes() -> None:
    found = by_class(source("cat", "zebra", "ant"), source("dog", "cat", "ant", "cat"))
    assert lists(found.relevant) == [[1, 3], [], [2]]
    assert lists(found.junk) == [[], [], []]
    assert found.num_relevant.tolist() == [2, 0, 1]


def test_by_class__within_one_source_an_image_is_no_answer_to_itself() -> None:
    images = source("cat", "ant", "cat")
    found = by_class(images, images)
    assert lists(found.relevant) == [[0, 2], [1], [0, 2]]
    assert lists(found.junk) == [[0], [1], [2]]
    assert found.num_relevant.tolist() == [1, 0, 1]


def test_judge__takes_junk_out() -> None:
    relevance = Relevance(indices([0, 3], [2]), indices([1], []))
    found = judge(np.array([[1, 0, 2, 3], [3, 2, 1, 0]]), relevance, 4)
    assert found.hits.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert found.num_relevant.tolist() == [2, 1]


def test_judge__of_the_nearest_gives_as_many_ranks_as_all_queries_have() -> None:
    relevance = Relevance(indices([0], [0]), indices([1], [9]))
    found = judge(np.array([[1, 2, 0], [2, 0, 1]]), relevance, 10)
    assert found.hits.tolist() == [[False, True], [False, True]]


def test_judge__each_image_against_all_others() -> None:
    images = source("cat", "ant", "cat", "ant")
    nearest = np.array([[0, 2], [0, 1], [2, 3], [3, 1]])
    found = judge(nearest, by_class(images, images), 4)
    assert found.hits.tolist() == [[True], [False], [False], [True]]
    whole = np.array([[0, 2, 1, 3], [0, 1, 2, 3], [2, 3, 0, 1], [3, 1, 0, 2]])
    found = judge(whole, by_class(images, images), 4)
    assert found.hits.astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]


def test_judge__what_was_not_searched_is_never_found() -> None:
    """Image 2 could not be read: its place in the ranking is missing, but not among the right ones."""
    relevance = Relevance(indices([0, 1, 2]), indices([]))
    found = judge(np.array([[1, 0]]), relevance, 2)
    assert found.hits.tolist() == [[True, True, False]]
    assert found.num_relevant.tolist() == [3]


def test_judge__needs_a_row_for_every_query() -> None:
    with pytest.raises(ValueError, match="shorter"):
        judge(np.array([[0], [0]]), Relevance(indices([0]), indices([])), 1)
