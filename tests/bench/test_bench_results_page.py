"""`mcbeit bench report`: tables for a terminal, Markdown, and one page that needs no other file."""

import re
from pathlib import Path

import numpy as np
import pytest
from measured import made_up, write_colours

from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.result import Curve, write_result
from mcbeit.bench.results_page import Written, write_report
from mcbeit.bench.summary import headline
from mcbeit.errors import BenchError
from mcbeit.stop import StopRequest


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("report")
    colours = write_colours(folder / "colours")
    found = make_plan(["knn,logreg"], ["pixels", "fake"], [f"colours={colours}"], preset="smoke", out=folder / "<out>")
    list(run(found, resume=False, stop=StopRequest()))
    return write_report(folder / "<out>")


def test_models_are_rows_and_tasks_are_columns(written: Written) -> None:
    (table,) = written.tables
    assert table.cells[0] == ["model", "dim", "knn top1, k=20, T=0.07, smoke", "logreg top1, smoke"]
    assert [row[0] for row in table.cells[1:]] == ["pixels [raw pixels]", "fake [the fake encoder]"]
    assert table.cells[1][2].startswith("100.00 ± ")
    assert any("preset smoke; at most 500 images per split: not comparable" in note for note in table.notes)


def test_markdown_has_the_same_numbers(written: Written) -> None:
    text = written.markdown.read_text()
    assert "| model | dim | knn top1, k=20, T=0.07, smoke | logreg top1, smoke |" in text
    assert "| pixels [raw pixels] | 3072 | 100.00 ± " in text


def test_the_page_needs_nothing_else(written: Written) -> None:
    html = written.page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", html)
    assert "<script" not in html
    assert "&lt;out&gt;" in html
    assert html.count('<svg class="chart"') >= 2  # bars of both tasks
    assert html.count('<details class="result"') == 4
    assert "Neighbours" in html
    assert "Confusion" in html


def test_a_result_is_one_line_that_says_its_conditions() -> None:
    line = headline(made_up(np.arange(10) < 8, preset="short", limit=10, overrides=("knn.k=[20]",)))
    assert line == (
        "knn on colours, a [the fake encoder]: top1 80.00 ± 22.66 % of 10 images "
        "(preset short; at most 10 images per split; knn.k=[20])"
    )


def test_the_same_task_by_other_settings_is_another_column(tmp_path: Path) -> None:
    for preset in ("paper", "short"):
        write_result(tmp_path / "results", made_up(np.arange(10) < 8, preset=preset))
    assert write_report(tmp_path).tables[0].cells[0] == ["model", "dim", "knn top1", "knn top1, short"]


def test_settings_and_limits_that_differ_are_columns_of_their_own(tmp_path: Path) -> None:
    for count, task in ((8, {"limit": 10}), (6, {"limit": 20}), (4, {"limit": 10, "protocol": {"k": [5]}})):
        write_result(tmp_path / "results", made_up(np.arange(10) < count, **task))
    header, row = write_report(tmp_path).tables[0].cells
    found = {name: cell.split()[0] for name, cell in zip(header[2:], row[2:], strict=True)}
    assert found == {
        "knn top1, limit 10, k [20]": "80.00",
        "knn top1, limit 20, k [20]": "60.00",
        "knn top1, limit 10, k [5]": "40.00",
    }


def test_the_same_model_by_other_vectors_is_another_row(tmp_path: Path) -> None:
    for count, pooling in ((8, "cls"), (6, "mean")):
        result = made_up(np.arange(10) < count)
        spec = result.model.spec.model_copy(update={"pooling": pooling, "fingerprint": pooling * 12})
        changed = result.model_copy(update={"model": result.model.model_copy(update={"spec": spec})})
        write_result(tmp_path / "results", changed)
    written = write_report(tmp_path)
    rows = {row[0]: row[2].split()[0] for row in written.tables[0].cells[1:]}
    assert rows == {"a [the fake encoder], pooling cls": "80.00", "a [the fake encoder], pooling mean": "60.00"}
    assert "a [the fake encoder], pooling mean</text>" in written.page.read_text()  # at the bars


def test_other_weights_and_other_images_of_one_name_are_other_rows(tmp_path: Path) -> None:
    first = made_up(np.arange(10) < 8)
    spec = first.model.spec.model_copy(update={"fingerprint": "ab" * 32})
    second = first.model_copy(update={"model": first.model.model_copy(update={"spec": spec})})
    third = made_up(np.arange(10) < 6, names="2" * 64)
    for result in (first, second, third):
        write_result(tmp_path / "results", result)
    names = [row[0] for row in write_report(tmp_path).tables[0].cells[1:]]
    known = f"a [the fake encoder], weights {first.model.spec.fingerprint[:8]}"
    assert sorted(names) == sorted(
        ["a [the fake encoder], weights abababab", *(f"{known}, {one.run_id[-10:]}" for one in (first, third))]
    )


def test_a_curve_of_a_single_point_is_left_to_the_table(tmp_path: Path) -> None:
    for count in (1, 2):
        x = tuple(float(epoch) for epoch in range(count))
        curve = Curve(title=f"top-1 at {count} epochs", x_label="epoch", x=x, lines={"": x})
        result = made_up(np.arange(10) < 8, source=f"model {count}")
        write_result(tmp_path / "results", result.model_copy(update={"curves": (curve,)}))
    html = write_report(tmp_path).page.read_text()
    assert "top-1 at 2 epochs" in html
    assert "top-1 at 1 epochs" not in html


def test_a_report_of_nothing_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results"):
        write_report(tmp_path)
