"""`mcbeit data prepare`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mcbeit import prepare
from mcbeit.cli.main import cli
from mcbeit.prepare.folder import Built, DataSet


def build(tree: Path, workspace: Path) -> Built:
    for split, count in {"train": 3, "val": 1}.items():
        (tree / split / "cat").mkdir(parents=True)
        for index in range(count):
            (tree / split / "cat" / f"{index}.png").touch()
    return Built([], "# Cats\n")


@pytest.fixture(autouse=True)
def cats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prepare.DATA_SETS, "cats", DataSet(name="cats", builder_version=1, seed=0, build=build))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", "prepare", *map(str, arguments)])


def test_prepare__one_line_on_stdout(tmp_path: Path) -> None:
    out = tmp_path / "cats"
    first, second = run("cats", out), run("cats", out)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout.startswith(f"cats: built in {out}, 3 train + 1 val images, 1 classes (")
    assert second.stdout.startswith(f"cats: already there in {out}, 3 train + 1 val images, 1 classes (")
    assert len(first.stdout.splitlines()) == len(second.stdout.splitlines()) == 1


def test_prepare__verify(tmp_path: Path) -> None:
    run("cats", tmp_path / "cats")
    (tmp_path / "cats" / "val" / "cat" / "0.png").write_text("scratched")
    result = run("cats", tmp_path / "cats", "--verify")
    assert "cats: rebuilt in" in result.stdout
    assert "the files differ from the manifest; building it again" in result.stderr


def test_prepare__unknown_name(tmp_path: Path) -> None:
    result = run("mnist", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        result.stderr == "Error: unknown data set 'mnist'\n"
        "data sets: emoji, emoji-ade, emoji-ade-agnostic, emoji-coco, emoji-coco-agnostic, emoji-styles, "
        "fashion-mnist, photos, cats\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_prepare__foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    result = run("cats", tmp_path)
    assert result.exit_code == 2
    assert "is not empty and was not made by 'mcbeit data prepare'" in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_prepare__help_names_every_data_set_and_loads_nothing_heavy() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n    {name} " in result.stdout for name in prepare.DATA_SETS if name != "cats")
    assert result.stdout.count("(synthetic composites)") == 4  # no other name for what is not COCO and not ADE20K
    code = (
        "import json, sys\n"
        "from mcbeit.cli.main import main\n"
        "try:\n    main(['data', 'prepare', '--help'])\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(shown.stderr.splitlines()[-1])
    assert not {"torch", "ray", "numpy", "PIL", "pydantic"} & set(loaded)
