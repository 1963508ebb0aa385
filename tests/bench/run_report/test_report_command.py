"""`mcbeit report`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import pretrain_config

from mcbeit.bench.run_report.baselines import Comparison, Row
from mcbeit.bench.run_report.report import Report
from mcbeit.cli.main import cli
from mcbeit.cli.report import show
from mcbeit.config import dump


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def set_gain(run: Path, gain: float) -> None:
    """Change what was measured: pretraining adds `gain` to both accuracies of the random backbone."""
    values = json.loads((run / "report.json").read_text())
    for row in values["comparison"]["rows"]:
        row["knn"] = row["linear"] = 0.5 + gain * (row["name"] == "pretrained")
    (run / "report.json").write_text(json.dumps(values))


def test_report__prints_the_table_to_stdout(run: Path) -> None:
    result = call(run)
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split()[:10] == ["features", "dim", "k-NN", "top-1", "-", "random", "linear", "top-1", "-", "random"]
    assert header.split()[10:] == ["R@1", "R@5", "R@10"]
    assert [row[:10] for row in rows[:3]] == ["raw pixels", "random bac", "pretrained"]
    assert rows[-2].startswith("verdict: ")
    assert rows[-1] == f"page: {run / 'report.html'}"
    assert result.stderr == ""


def test_report__fresh(run: Path) -> None:
    first = call(run)
    set_gain(run, 0.25)
    assert "+0.250" in call(run).stdout
    fresh = call(run, "--fresh")
    assert fresh.stdout == first.stdout
    assert "report 5/5" in fresh.stderr


def test_report__demand(run: Path) -> None:
    set_gain(run, 0.25)
    met = call(run, "--demand")
    assert (met.exit_code, "verdict: met" in met.stdout) == (0, True)
    set_gain(run, 0.01)
    unmet = call(run, "--demand")
    assert (unmet.exit_code, "verdict: NOT met" in unmet.stdout, unmet.stderr) == (1, True, "")
    assert call(run).exit_code == 0


def test_report__demand_without_labels(unlabelled: Path) -> None:
    result = call(unlabelled, "--demand")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith("no table: ")
    assert result.stderr.splitlines()[-1] == "--demand: without labels there is nothing to judge"
    assert call(unlabelled).exit_code == 0


def test_report__mistakes_are_one_message(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    config = pretrain_config(shapes / "train", shapes / "tokenizer", tmp_path / "new")
    (tmp_path / "new" / "config.yaml").write_text(dump(config))
    for run, message in (
        (tmp_path / "typo", "is not a run"),
        (shapes / "tokenizer", "is a tokenizer run"),
        (tmp_path / "new", "no complete checkpoint"),
    ):
        result = call(run)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_show__draws_in_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "130")
    rows = [Row(name, 8, 0.5, 0.5, (0.5,) * 3) for name in ("pixels", "random", "pretrained")]
    show(Report(Comparison(rows, "train", "val", 5, 5, 0, 2, 0, 1), tmp_path / "report.html"))
    found = capsys.readouterr().out
    assert "│ pretrained, step 1" in found
    assert "verdict: NOT met" in found


def test_report__help_has_an_example() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "mcbeit report runs/demo" in result.stdout
