import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cocos import CATEGORIES, annotation, content, rectangle

from mcbeit.detection.coco_results import CocoResults
from mcbeit.detection.coco_scores import STATS, bootstrap_ap, score
from mcbeit.detection.detections import Detections
from mcbeit.detection.rle import box, decode, encode
from mcbeit.errors import DataError

HEIGHT, WIDTH = 300, 400
BACKENDS = ["pycocotools", "fast"]


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def realistic(num_images: int = 24) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Discs of all sizes, crowds among them, and detections: some exact, some moved, some doubled, some of nothing."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    categories = list(CATEGORIES)
    for image in range(1, num_images + 1):
        for _ in range(int(rng.integers(1, 9))):
            row, column, radius = rng.uniform(20, HEIGHT - 20), rng.uniform(20, WIDTH - 20), rng.choice([6, 25, 70])
            mask, category = disc(row, column, radius), int(rng.choice(categories))
            is_crowd = int(rng.random() < 0.1)
            annotations.append(
                annotation(len(annotations), image, category, box(mask), segmentation=encode(mask), iscrowd=is_crowd,
                           area=float(mask.sum()))
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                moved = disc(*(np.array([row, column]) + rng.normal(0, radius / 6, 2)), radius * rng.uniform(0.8, 1.2))
                found = category if rng.random() < 0.9 else int(rng.choice(categories))
                results.append(entry(image, found, moved, float(rng.uniform(0.05, 1))))
        nothing = disc(rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH), 15)
        results.append(entry(image, int(rng.choice(categories)), nothing, float(rng.uniform(0.05, 0.5))))
    return content(dict.fromkeys(range(1, num_images + 1), (HEIGHT, WIDTH)), annotations), results


def entry(image: int, category: int, mask: np.ndarray, probability: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(box(mask)), "score": probability,
            "segmentation": encode(mask)}  # fmt: skip


# by definition


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__what_was_marked_found_again_is_perfect(backend: Any) -> None:
    truth, _ = realistic()
    results = [
        {**entry(a["image_id"], a["category_id"], decode(a["segmentation"], HEIGHT, WIDTH), 0.9), "bbox": a["bbox"]}
        for a in truth["annotations"] if not a["iscrowd"]
    ]  # fmt: skip
    for scores in score(truth, results, backend=backend).values():
        for name in ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100"):
            assert scores.stats[name] == pytest.approx(1.0), name
        assert scores.by_class == dict.fromkeys(CATEGORIES.values(), pytest.approx(1.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__by_hand(backend: Any) -> None:
    """Two discs; one is found with its exact mask but half of its box, then something else, then the other one."""
    first, second = np.zeros((2, 20, 20), dtype=bool)
    first[2:12, 2:12], second[14:18, 10:20] = True, True
    truth = content({5: (20, 20)}, [annotation(0, 5, 3, box(first), segmentation=encode(first)),
                                    annotation(1, 5, 3, box(second), segmentation=encode(second))])  # fmt: skip
    other = np.zeros((20, 20), dtype=bool)
    other[0:2, 15:19] = True
    results = [{**entry(5, 3, first, 0.9), "bbox": [2, 2, 10, 6.5]}, entry(5, 3, other, 0.8), entry(5, 3, second, 0.7)]
    found = score(truth, results, backend=backend)
    # precision at recall up to 1/2 is 1, then 2/3: of 101 recalls, 51 and 50
    whole, half = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert found["segm"].stats["AP"] == pytest.approx(whole)
    # the box overlaps by 0.65, which counts at 0.5, 0.55, 0.6 and 0.65; else only the third one is right, precision 1/3
    assert found["bbox"].stats["AP"] == pytest.approx((4 * whole + 6 * half / 3) / 10)
    assert found["bbox"].stats["AP50"] == pytest.approx(whole)
    assert found["bbox"].stats["AP75"] == pytest.approx(half / 3)
    assert found["segm"].stats["AP_large"] is None
    assert found["segm"].stats["AR_1"] == pytest.approx(0.5)
    assert found["segm"].by_class == {"disc": pytest.approx(whole), "square": None, "bar": None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__the_area_of_a_mask_is_not_that_of_its_box(backend: Any) -> None:
    """A thin diagonal has a large box and a small mask: what is found beside it is a small error, not a large one."""
    line = np.eye(200, dtype=bool)
    square = np.zeros((200, 200), dtype=bool)
    square[:110, :110] = True
    truth = content({1: (200, 200)}, [annotation(1, 1, 3, box(square), segmentation=encode(square), area=12100)])
    wrong = {**entry(1, 3, line, 0.99), "bbox": [0, 0, 200, 200]}
    found = score(truth, [wrong, entry(1, 3, square, 0.5)], backend=backend)
    assert found["segm"].stats["AP_large"] == pytest.approx(1.0)
    assert found["segm"].stats["AP"] == pytest.approx(0.5)
    assert found["bbox"].stats["AP_large"] == pytest.approx(0.5)


# both backends, and the official way of calling one


def test_bootstrap_ap__is_what_the_score_of_drawn_images_is() -> None:
    truth, results = realistic(6)
    found = bootstrap_ap(truth, results, seed=3, draws=2)
    rows = np.random.default_rng(3).integers(6, size=6)
    drawn, entries, marked = [int(row) + 1 for row in rows], [], []
    for number, image in enumerate(drawn, start=1):
        entries += [{**entry, "image_id": number} for entry in results if entry["image_id"] == image]
        marked += [{**entry, "image_id": number} for entry in truth["annotations"] if entry["image_id"] == image]
    assert len(set(drawn)) < 6  # some images count twice
    by_hand = score(content(dict.fromkeys(range(1, 7), (HEIGHT, WIDTH)), marked), entries)
    for kind in ("bbox", "segm"):
        assert found[kind].shape == (2,)
        assert found[kind][0] == pytest.approx(by_hand[kind].stats["AP"])


def test_bootstrap_ap__lies_around_the_score_and_repeats_itself() -> None:
    truth, results = realistic()
    found, again = (bootstrap_ap(truth, results, seed=0, draws=50)["segm"] for _ in range(2))
    assert np.array_equal(found, again)
    ap = score(truth, results)["segm"].stats["AP"]
    assert ap is not None
    assert abs(found.mean() - ap) < 2 * found.std()
    assert 0.005 < found.std() < 0.1


def test_bootstrap_ap__a_draw_with_nothing_to_find_has_no_score() -> None:
    """One of two images has an object: a draw of the other one, twice, has none."""
    square = np.zeros((20, 20), dtype=bool)
    square[2:12, 2:12] = True
    marked = [annotation(0, 1, 3, box(square), segmentation=encode(square))]
    found = bootstrap_ap(content({1: (20, 20), 2: (20, 20)}, marked), [entry(1, 3, square, 0.9)], seed=0, draws=40)
    missing = np.isnan(found["bbox"])
    assert 0 < missing.sum() < 20
    assert found["bbox"][~missing] == pytest.approx(1.0)


def test_score__both_backends_agree_to_six_digits() -> None:
    truth, results = realistic()
    official, fast = (score(truth, results, backend=backend) for backend in BACKENDS)
    for kind in ("bbox", "segm"):
        assert list(official[kind].stats) == list(STATS)
        assert all(value is not None and 0.02 < value < 0.98 for value in official[kind].stats.values())
        for name, value in official[kind].stats.items():
            assert fast[kind].stats[name] == pytest.approx(value, abs=5e-7), (kind, name)
        for name, value in official[kind].by_class.items():
            assert fast[kind].by_class[name] == pytest.approx(value, abs=5e-7)
    assert official["bbox"].stats["AP"] != official["segm"].stats["AP"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_score__is_what_pycocotools_says_of_the_files(kind: Any, tmp_path: Path, capsys: Any) -> None:
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth, results = realistic(8)
    for a in truth["annotations"]:
        a["id"] += 1
    ours = score(truth, results)[kind].stats
    assert capsys.readouterr().out == ""
    for entry_ in results:
        if kind == "segm":
            del entry_["bbox"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = coco.COCO(str(tmp_path / "truth.json"))
    theirs = evaluation.COCOeval(expected, expected.loadRes(str(tmp_path / "results.json")), kind)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    assert list(ours.values()) == pytest.approx(theirs.stats.tolist())


# traps


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__nothing_found_and_nothing_to_find(backend: Any) -> None:
    truth, results = realistic(3)
    for scores in score(truth, [], backend=backend).values():
        assert scores.stats["AP"] == scores.stats["AR_100"] == 0
    empty = {**truth, "annotations": []}
    for scores in score(empty, results, backend=backend).values():
        assert set(scores.stats.values()) == {None}
        assert set(scores.by_class.values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__the_surest_hundred_of_an_image_count(backend: Any) -> None:
    mask = disc(50, 50, 20)
    truth = content({1: (HEIGHT, WIDTH)}, [annotation(1, 1, 3, box(mask), segmentation=encode(mask))])
    results = [entry(1, 3, disc(200, 300, 20), 0.9) for _ in range(100)] + [entry(1, 3, mask, 0.1)]
    assert score(truth, results, backend=backend)["segm"].stats["AP"] == 0
    assert score(truth, results[1:], backend=backend)["segm"].stats["AP"] == pytest.approx(0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_score__an_annotation_with_the_id_0_is_found_too(backend: Any) -> None:
    mask = disc(50, 50, 20)
    truth = content({1: (HEIGHT, WIDTH)}, [annotation(0, 1, 3, box(mask), segmentation=encode(mask))])
    assert score(truth, [entry(1, 3, mask, 0.9)], backend=backend)["segm"].stats["AP"] == pytest.approx(1.0)


def test_score__what_a_set_of_ones_own_leaves_out_is_filled_in() -> None:
    polygon = rectangle(10, 20, 30, 40)
    bare = {"id": 7, "image_id": 1, "category_id": 17, "segmentation": polygon}
    truth = content({1: (HEIGHT, WIDTH)}, [bare])
    found = score(truth, [entry(1, 17, decode(polygon, HEIGHT, WIDTH), 0.9)])
    assert found["bbox"].stats["AP"] == found["segm"].stats["AP_medium"] == pytest.approx(1.0)
    assert found["bbox"].stats["AP_small"] is None
    assert bare.keys() == {"id", "image_id", "category_id", "segmentation"}  # the caller's stays as it was


def test_score__images_that_were_not_looked_at_do_not_count() -> None:
    truth, results = realistic(6)
    some = score(truth, results, image_ids=[2, 3])
    part = {**truth, "images": truth["images"][1:3],
            "annotations": [a for a in truth["annotations"] if a["image_id"] in (2, 3)]}  # fmt: skip
    assert some == score(part, [found for found in results if found["image_id"] in (2, 3)])
    assert some != score(truth, results)


def test_score__what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    truth, results = realistic(2)
    with pytest.raises(DataError, match="1 detections are of images that are not in the annotations, such as 99"):
        score(truth, [{**results[0], "image_id": 99}])
    with pytest.raises(DataError, match="1 images are not in the annotations, such as 7"):
        score(truth, results, image_ids=[1, 7])
    shapeless = content({1: (9, 9)}, [annotation(4, 1, 3, (1, 1, 2, 2), segmentation=None)])
    with pytest.raises(DataError, match="1 annotations have no segmentation, such as 4: masks cannot be scored"):
        score(shapeless, [])
    with pytest.raises(DataError, match=r"the annotations '.*none\.json' cannot be read"):
        score(str(tmp_path / "none.json"), [])


# CocoResults


def found_in(*boxes: tuple[float, float, float, float]) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes).view(count, 4), torch.linspace(0.95, 0.15, count), torch.arange(count) % 3,
        torch.ones(count, 28, 28),
    )  # fmt: skip


def test_coco_results__are_written_as_other_tools_read_them(tmp_path: Path) -> None:
    results = CocoResults(np.array([3, 17, 90]))
    results.add(42, 30, 40, found_in((1.5, 2.25, 11.5, 12.25), (0.0, 0.0, 40.0, 30.0)))
    results.add(7, 50, 20, found_in())
    results.write(tmp_path / "results.json")
    entries = json.loads((tmp_path / "results.json").read_text())
    assert entries == list(results)
    assert len(entries) == len(results) == 2
    assert entries[0]["bbox"] == [1.5, 2.25, 10.0, 10.0]
    assert [entry_["category_id"] for entry_ in entries] == [3, 17]
    assert [entry_["score"] for entry_ in entries] == [0.95, 0.15]  # the shortest that are the same in float32
    assert entries[1]["segmentation"]["size"] == [30, 40]
    assert decode(entries[1]["segmentation"], 30, 40).all()
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_coco_results__of_several_workers_together() -> None:
    both, first, second = (CocoResults(np.array([3, 17, 90])) for _ in range(3))
    for results in (both, first):
        results.add(1, 20, 20, found_in((1.0, 1.0, 9.0, 9.0)))
    for results in (both, second):
        results.add(2, 30, 20, found_in((2.0, 2.0, 9.0, 9.0), (3.0, 3.0, 5.0, 5.0)))
    first.extend(second)
    assert list(first) == list(both)


def test_coco_results__nothing_found(tmp_path: Path) -> None:
    CocoResults(np.array([1])).write(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []
