"""The wheel: everything under the single top level `mcbeit`, nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mcbeit

ROOT = Path(__file__).parents[1]
FOLDERS = ("mcbeit", "serve", "bench", "cli")
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")


def files_of(folder: str) -> set[str]:
    """Every file below one of the four folders, as the wheel should name it; links are not followed."""
    found = set()
    for parent, _, names in os.walk(ROOT / folder):
        paths = (Path(parent, name).relative_to(ROOT) for name in names)
        found |= {
            path.as_posix() for path in paths if "__pycache__" not in path.parts and not path.name.startswith(".")
        }
    return found if folder == "mcbeit" else {f"mcbeit/{path}" for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the checkout stays clean and nothing left in it gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_links__are_links() -> None:
    """A checkout without symbolic links imports nothing and still builds: catch it here."""
    for folder in FOLDERS[1:]:
        assert (ROOT / "mcbeit" / folder).readlink() == Path("..", folder)


def test_wheel__one_top_level(wheel: Path, contents: set[str]) -> None:
    assert wheel.name == f"mcbeit-{mcbeit.__version__}-py3-none-any.whl"
    assert {name.split("/")[0] for name in contents} == {"mcbeit", f"mcbeit-{mcbeit.__version__}.dist-info"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel__holds_every_file(contents: set[str], folder: str) -> None:
    """Modules and data alike: a data file needs a line in [tool.setuptools.package-data]."""
    assert sorted(files_of(folder) - contents) == []


def test_wheel__holds_nothing_else(contents: set[str]) -> None:
    shipped = {name for name in contents if ".dist-info/" not in name}
    assert sorted(shipped - set().union(*map(files_of, FOLDERS))) == []
    assert not [name for name in contents if "/tests/" in name or "/test_" in name]


def test_wheel__typed_presets_licences(contents: set[str]) -> None:
    assert "mcbeit/py.typed" in contents
    assert {f"mcbeit/presets/{path.name}" for path in (ROOT / "mcbeit/presets").glob("*.yaml")} <= contents
    licences = f"mcbeit-{mcbeit.__version__}.dist-info/licenses"
    assert {f"{licences}/LICENSE", f"{licences}/NOTICE"} <= contents


def test_wheel__imports_and_runs(wheel: Path, tmp_path: Path) -> None:
    """Unpacked away from the checkout: the rooms import each other there, and the command finds its version."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import mcbeit, mcbeit.serve, mcbeit.bench, mcbeit.cli.main as main;"
        "print(*{module.__file__.rpartition('/mcbeit/')[0] for module in (mcbeit, mcbeit.serve, mcbeit.bench, main)});"
        "main.main(['--version'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, version = result.stdout.splitlines()
    assert (Path(where), version.split()[-1]) == (tmp_path, mcbeit.__version__)
