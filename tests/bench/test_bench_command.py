"""`mcbeit bench` as a user types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from measured import write_colours

from mcbeit.cli.main import cli


def mcbeit(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments])


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("images") / "colours")


def measure(colours: Path, out: Path, *more: str) -> Result:
    words = ["run", "-t", "knn", "-m", "pixels", "--data", f"colours={colours}", "--preset", "smoke", "-o", str(out)]
    return mcbeit(*words, *more)


def test_measure_report_verify_and_compare(colours: Path, tmp_path: Path) -> None:
    found = measure(colours, tmp_path / "a")
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("knn on colours, pixels [raw pixels]: top1, k=20, T=0.07 100.00 ± ")
    reported = mcbeit("report", str(tmp_path / "a"))
    assert "knn top1, k=20, T=0.07, smoke" in reported.stdout
    assert f"page: {tmp_path / 'a' / 'report.html'}" in reported.stdout
    verified = mcbeit("verify", str(tmp_path / "a"))
    assert (verified.exit_code, verified.stdout.count("ok  ")) == (0, 2)
    assert measure(colours, tmp_path / "b").exit_code == 0
    compared = mcbeit("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert "the same answers" in compared.stdout


def test_verify_fails_if_something_is_wrong(colours: Path, tmp_path: Path) -> None:
    measure(colours, tmp_path)
    (path,) = (tmp_path / "results").glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "primary": 1}))
    found = mcbeit("verify", str(tmp_path))
    assert found.exit_code == 1
    assert found.stdout.startswith("WRONG  knn-colours-pixels")


def test_ls_tells_what_each_task_needs() -> None:
    found = mcbeit("ls")
    assert found.exit_code == 0
    assert "knn" in found.stdout
    assert "embedding" in found.stdout


def test_mistakes_are_one_message(colours: Path, tmp_path: Path) -> None:
    found = measure(colours, tmp_path, "knn.k=[0]")
    assert found.exit_code == 2
    assert "Traceback" not in found.output
    assert "the task knn" in found.stderr
