"""`mcbeit bench verify`: what was changed after it was measured is found."""

import json
from pathlib import Path

import pytest
from measured import write_colours

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.result import read_results
from mcbeit.bench.verification import verify_folder
from mcbeit.errors import BenchError
from mcbeit.stop import StopRequest


@pytest.fixture
def measured_folder(tmp_path: Path) -> Path:
    """OUT with one result, whose images lie at `colours` beside it."""
    colours = write_colours(tmp_path / "colours")
    found = make_plan(["knn"], ["pixels"], [f"colours={colours}"], preset="smoke", out=tmp_path / "out")
    list(run(found, resume=False, stop=StopRequest()))
    return tmp_path / "out"


def wrong(folder: Path) -> list[str]:
    return [finding.text for finding in verify_folder(folder) if finding.is_wrong]


def test_what_nobody_changed_is_fine(measured_folder: Path) -> None:
    findings = verify_folder(measured_folder)
    assert [finding.text for finding in findings] == [
        "unchanged, and so are its 24 images (train)",
        "unchanged, and so are its 12 images (val)",
    ]
    assert not wrong(measured_folder)


def test_a_changed_number_is_found(measured_folder: Path) -> None:
    (path,) = (measured_folder / "results").glob("*.json")
    values = json.loads(path.read_text())
    values["metrics"][values["primary"]]["value"] = 0.99
    path.write_text(json.dumps(values))
    (text,) = wrong(measured_folder)
    assert text == f"the result '{path}' was changed after it was measured; remove it, and measure again"
    with pytest.raises(BenchError, match="was changed after it was measured"):
        read_results(measured_folder)


def test_a_setting_that_does_not_fit_the_name_is_found(measured_folder: Path) -> None:
    (path,) = (measured_folder / "results").glob("*.json")
    values = json.loads(path.read_text())
    values["task"]["preset"] = "paper"
    del values["sha256"]
    path.write_text(json.dumps(values))
    assert wrong(measured_folder) == ["its task, model or images were changed after it was measured"]


def test_a_damaged_file_is_found(measured_folder: Path) -> None:
    (path,) = (measured_folder / "results").glob("*.json")
    path.write_text(path.read_text()[:200])
    assert "is no result of mcbeit bench" in wrong(measured_folder)[0]


def test_changed_pictures_are_found(measured_folder: Path) -> None:
    (path,) = (measured_folder / "results" / "pictures").iterdir()
    path.write_text("[]")
    assert "is another file than it was" in wrong(measured_folder)[0]
    path.unlink()
    assert "is not there" in wrong(measured_folder)[0]


def test_changed_images_are_found(measured_folder: Path) -> None:
    (measured_folder.parent / "colours" / "val" / "red" / "0.png").write_bytes(b"another")
    assert wrong(measured_folder) == [f"its images (val) at '{measured_folder.parent / 'colours'}' are others now"]


def test_images_that_are_away_are_told_but_nothing_is_wrong(measured_folder: Path) -> None:
    (measured_folder.parent / "colours").rename(measured_folder.parent / "away")
    assert not wrong(measured_folder)
    assert "cannot be looked at" in verify_folder(measured_folder)[0].text


def test_an_empty_folder_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results"):
        verify_folder(tmp_path)


def test_the_images_of_a_retrieval_are_looked_at(tmp_path: Path) -> None:
    images = write_colours(tmp_path / "colours") / "val"
    found = make_plan(["retrieval"], ["pixels"], [f"c=single:{images}"], preset="smoke", out=tmp_path / "out")
    list(run(found, resume=False, stop=StopRequest()))
    assert {finding.text for finding in verify_folder(tmp_path / "out")} == {
        "unchanged, and so are its 12 images (queries)",
        "unchanged, and so are its 12 images (gallery)",
    }
