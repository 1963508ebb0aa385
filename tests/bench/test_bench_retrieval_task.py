"""The task `retrieval`: folders of one's own, sets of which each image is a query, revisited buildings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from measured import write_colours
from PIL import Image

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.result import Result
from mcbeit.errors import ConfigError
from mcbeit.stop import StopRequest


def measure(folder: Path, out: Path, *assignments: str, preset: str = "paper") -> Result:
    found = make_plan(["retrieval"], ["pixels"], [f"colours={folder}"], preset=preset, out=out, assignments=assignments)  # type: ignore[arg-type]
    (result,) = run(found, resume=False, stop=StopRequest())
    return result


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("images") / "colours")


def test_each_image_finds_the_others_of_its_class(colours: Path, tmp_path: Path) -> None:
    found = measure(colours / "val", tmp_path)
    assert found.primary == "recall@1"
    assert {name: metric.value for name, metric in found.metrics.items()} == {
        "recall@1": 1.0, "recall@5": 1.0, "recall@10": 1.0, "mAP": 1.0, "MRR": 1.0, "MAP@R": 1.0, "R-precision": 1.0,
    }  # fmt: skip
    assert found.data.layout == "single"
    assert found.metrics["mAP"].uncertainty == "bootstrap over queries, 1000 draws"


def test_queries_may_lie_in_a_folder_of_their_own(colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours / "train", tmp_path / "set" / "gallery")
    shutil.copytree(colours / "val", tmp_path / "set" / "query")
    found = measure(tmp_path / "set", tmp_path / "out")
    assert found.data.splits["queries"].used.num_used == 12
    assert found.data.splits["gallery"].used.num_used == 24
    assert found.metrics["MAP@R"].value == 1.0


def test_what_cannot_be_read_counts_as_missed(colours: Path, tmp_path: Path) -> None:
    shutil.copytree(colours / "train", tmp_path / "set" / "gallery")
    shutil.copytree(colours / "val", tmp_path / "set" / "query")
    for i in range(4):  # half of one class
        (tmp_path / "set" / "gallery" / "red" / f"{i}.png").write_bytes(b"no image")
    found = measure(tmp_path / "set", tmp_path / "out", "data.max_corrupt_fraction=0.5")
    assert found.metrics["recall@1"].value == 1.0
    assert found.metrics["R-precision"].value == pytest.approx((1 + 1 + 0.5) / 3)


def test_large_galleries_are_ranked_as_far_as_needed(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(colours / "train", tmp_path / "whole")
    monkeypatch.setattr("mcbeit.bench.tasks.retrieval.WHOLE_RANKING", 10)
    part = measure(colours / "train", tmp_path / "part", "retrieval.recall=[1,5]")
    assert "mAP" not in part.metrics
    assert "whole rankings" in part.remarks[0]
    assert part.metrics["MAP@R"] == whole.metrics["MAP@R"]


def test_a_limit_would_take_answers_away(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would take right answers out of the gallery"):
        measure(colours / "val", tmp_path, "limit=5")
    assert measure(colours / "val", tmp_path, preset="smoke").task.limit is None


def test_wrong_answers_lower_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "noise" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "noise" / name / f"{i}.png")
    found = measure(tmp_path / "noise", tmp_path / "out")
    assert found.metrics["mAP"].value < 0.9
    assert found.metrics["recall@10"].value == 1.0


def test_drawings_of_the_same_things_find_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    things = {name: rng.integers(0, 255, (16, 16, 3)) for name in "abcdefgh"}
    for style, shift in (("ink", 0), ("oil", 25)):
        for i, (name, pixels) in enumerate(things.items()):
            path = tmp_path / "things" / ("val" if i < 3 else "train") / style / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 0.8 + shift).clip(0, 255).astype(np.uint8)).save(path)
    found = make_plan(
        ["retrieval"], ["pixels"], [f"things=paired:{tmp_path / 'things'}"], preset="paper", out=tmp_path / "out",
        assignments=["retrieval.scaling=centre"],
    )  # fmt: skip
    (result,) = run(found, resume=False, stop=StopRequest())
    assert result.primary == "recall@1, ink to oil"
    assert result.metrics["recall@1, ink to oil"].value == 1.0
    assert result.metrics["MRR, oil to ink"].value == 1.0
    assert result.metrics["recall@1, ink to oil"].num_samples == 3


def test_an_image_is_not_shown_as_its_own_neighbour(colours: Path, tmp_path: Path) -> None:
    found = measure(colours / "val", tmp_path)
    (name,) = found.artifacts
    shown = json.loads((tmp_path / "results" / name).read_text())
    assert all(row["query"]["name"] not in [near["name"] for near in row["neighbours"]] for row in shown)
    assert found.images_per_second is not None
    assert found.seconds["features"] * found.images_per_second == pytest.approx(12)  # embedded once, not twice
