"""Fixtures of the tests of `mcbeit.prepare`."""

from pathlib import Path

import pytest
from machine import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without any command; files are at `tmp_path / "machine"`."""
    root = tmp_path / "machine"
    root.mkdir()
    made = Machine(root)
    monkeypatch.setenv("PATH", str(made.bin))
    return made
