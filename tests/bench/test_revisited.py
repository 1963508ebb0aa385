import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import encode, photo

from mcbeit.bench.retrieval_metrics import precision_at, trapezoidal_average_precision
from mcbeit.bench.retrieval_set import judge
from mcbeit.bench.revisited import PROTOCOLS, open_revisited
from mcbeit.errors import DataError
from mcbeit.image_files import decode

NAMES = [f"all_souls_{i:06}" for i in range(6)]
QUERIES = ["radcliffe_camera_000158", "bodleian_000108"]
BOXES = [[4.2, 2.0, 40.0, 30.7], [0.0, 0.0, 10.0, 10.0]]
ANSWERS = [([0], [1, 2], [3]), ([], [5], [])]  # easy, hard and junk images of each query


def plain(values: list[int]) -> Any:
    return values


def array(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64 if values else np.float64)  # as numpy makes of an empty list


def truth(of: Callable[[list[int]], Any] = plain) -> dict[str, Any]:
    parts = [{"easy": of(easy), "hard": of(hard), "junk": of(junk)} for easy, hard, junk in ANSWERS]
    boxes = BOXES if of is plain else [np.array(box) for box in BOXES]
    gnd = [{"bbx": box, **part} for box, part in zip(boxes, parts, strict=True)]
    return {"imlist": NAMES, "qimlist": QUERIES, "gnd": gnd}


def write(root: Path, content: object, protocol: int = 4, name: str = "gnd_roxford5k.pkl") -> str:
    (root / "jpg").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate([*NAMES, *QUERIES]):
        (root / "jpg" / f"{image}.jpg").write_bytes(encode(photo(48, 64, seed=i), "jpg"))
    (root / name).write_bytes(pickle.dumps(content, protocol))
    return str(root)


def message(folder: str) -> str:
    with pytest.raises(DataError) as error:
        open_revisited(folder)
    return str(error.value)


@pytest.mark.parametrize("of", [plain, array])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["gnd_roxford5k.pkl", "gnd_rparis6k.pkl"])
def test_open_revisited__reads_the_layout_of_the_paper(
    name: str, protocol: int, of: Callable[[list[int]], Any], tmp_path: Path
) -> None:
    found = open_revisited(write(tmp_path, truth(of), protocol, name))
    assert found.layout == "revisited"
    assert [found.gallery.name(i) for i in range(6)] == [f"{tmp_path}/jpg/{name}.jpg" for name in NAMES]
    assert [found.queries.name(i) for i in range(2)] == [f"{tmp_path}/jpg/{name}.jpg" for name in QUERIES]
    lists = {
        protocol: [[part.tolist() for part in parts] for parts in (one.relevant, one.junk)]
        for protocol, one in found.relevance.items()
    }
    assert lists == {
        "easy": [[[0], []], [[1, 2, 3], [5]]],
        "medium": [[[0, 1, 2], [5]], [[3], []]],
        "hard": [[[1, 2], [5]], [[0, 3], []]],
    }


def test_open_revisited__crops_queries_to_their_boxes(tmp_path: Path) -> None:
    folder = write(tmp_path, truth())
    found = open_revisited(folder)
    whole = np.asarray(decode(Path(folder) / "jpg" / f"{QUERIES[0]}.jpg"))
    assert np.array_equal(np.asarray(decode(found.queries.read(0))), whole[2:31, 4:40])
    assert found.gallery.read(0) == Path(folder, "jpg", f"{NAMES[0]}.jpg").read_bytes()


def test_open_revisited__a_ranking_by_hand(tmp_path: Path) -> None:
    """Images 4 and 5 are wrong for the first query; junk is out in front of what it is in front of."""
    found = open_revisited(write(tmp_path, truth()))
    ranking = np.array([[3, 1, 4, 0, 2, 5], [5, 0, 1, 2, 3, 4]])
    scores = {name: judge(ranking, found.relevance[name], 6) for name in PROTOCOLS}
    area = {name: trapezoidal_average_precision(*ranked) for name, ranked in scores.items()}
    # easy: 3, 1 and 2 are junk, so 4 0 5; the second query has no easy image
    assert area["easy"][0] == pytest.approx((0 + 1 / 2) / 2)
    assert np.isnan(area["easy"][1])
    # medium: 1 4 0 2 5
    assert area["medium"] == pytest.approx([((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3, 1])
    # hard: 3 and 0 are junk, so 1 4 2 5
    assert area["hard"] == pytest.approx([((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2, 1])
    assert precision_at(*scores["medium"], [1, 3, 10])[0] == pytest.approx([1, 2 / 3, 3 / 4])


class Attack:
    """Pickles to a call."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_open_revisited__executes_nothing(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "was-executed"
    folder = write(tmp_path / "data", {**truth(), "imlist": [Attack(mark)]}, protocol)
    assert message(folder).startswith(f"'{folder}/gnd_roxford5k.pkl' is no pickle of plain values: it wants to call")
    assert not mark.exists()


def answer(**parts: object) -> dict[str, Any]:
    """The ground truth with other parts of the first answer; without those that are None."""
    whole = truth()
    changed = whole["gnd"][0] | parts
    return {**whole, "gnd": [{key: part for key, part in changed.items() if part is not None}, whole["gnd"][1]]}


WRONG: dict[str, tuple[object, str]] = {
    "a list": ([truth()], "it holds a list"),
    "no queries": ({"imlist": NAMES, "gnd": []}, "it has no 'qimlist'"),
    "no images": ({**truth(), "imlist": []}, "it names no image"),
    "a number for a name": ({**truth(), "imlist": [*NAMES[:5], 7]}, "7 is no name of a file"),
    "a path for a name": ({**truth(), "imlist": ["../../x"]}, "'../../x' is no name of a file"),
    "one answer": ({**truth(), "gnd": truth()["gnd"][:1]}, "it names 2 queries and has answers for 1"),
    "answers that are none": ({**truth(), "gnd": [1, 2]}, "is no ground truth of revisited Oxford or Paris"),
    "no boxes": (answer(bbx=None), "it has no 'bbx'"),
    "half a box": (answer(bbx=[1, 2]), "bbx of a query is [1.0, 2.0], not left, top, right and bottom"),
    "a box of no width": (answer(bbx=[9, 2, 3, 4]), "bbx of a query is [9.0, 2.0"),
    "a box of nan": (answer(bbx=[float("nan")] * 4), "bbx of a query is [nan"),
    "no such image": (answer(easy=[6]), "easy of a query is [6], not numbers of 6 images"),
    "a negative image": (answer(junk=[-1]), "junk of a query is [-1], not numbers"),
    "half an image": (answer(hard=[1.5]), "hard of a query is [1.5], not numbers"),
    "names of images": (answer(hard=["a"]), "hard of a query is ['a'], not numbers"),
    "a huge number": (answer(hard=[2**80]), "not numbers of 6 images"),
    "a list of lists": (answer(hard=[[1], [1, 2]]), "inhomogeneous"),
}


@pytest.mark.parametrize("name", WRONG)
def test_open_revisited__says_what_is_wrong_with_the_ground_truth(name: str, tmp_path: Path) -> None:
    content, reason = WRONG[name]
    error = message(write(tmp_path, content))
    assert f"'{tmp_path}/gnd_roxford5k.pkl' is no ground truth of revisited Oxford or Paris: " in error
    assert reason in error
    assert error.endswith("expected a dict of imlist, qimlist and gnd, with easy, hard, junk and bbx for each query")


def test_open_revisited__says_what_was_expected_and_found(tmp_path: Path) -> None:
    folder = write(tmp_path, truth())
    (tmp_path / "gnd_roxford5k.pkl").rename(tmp_path / "groundtruth.pkl")
    assert message(folder) == (
        f"'{folder}' is not laid out as revisited Oxford or Paris: expected gnd_roxford5k.pkl or gnd_rparis6k.pkl, and "
        "jpg/NAME.jpg for each name in it; found groundtruth.pkl, jpg"
    )
    (tmp_path / "groundtruth.pkl").rename(tmp_path / "gnd_rparis6k.pkl")
    (tmp_path / "jpg").rename(tmp_path / "images")
    assert message(folder).endswith("found gnd_rparis6k.pkl, images")


@pytest.mark.parametrize("name", [NAMES[2], QUERIES[0]])
def test_open_revisited__names_an_image_that_is_missing(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, truth())
    (tmp_path / "jpg" / f"{name}.jpg").unlink()
    assert f"1 of {6 if name in NAMES else 2} are missing, the first is '{name}.jpg'" in message(folder)
