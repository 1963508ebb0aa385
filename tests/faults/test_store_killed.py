"""The index under a hundred kills."""

from pathlib import Path

import pytest
from store_writer import killed_writer

pytestmark = pytest.mark.faults


def test_kill__a_hundred_times(tmp_path: Path) -> None:
    model: dict[str, int] = {}
    calls = sum(killed_writer(tmp_path, seed, model) for seed in range(100))
    print(f"\nstore: 100 kills, {calls} calls acknowledged, none lost, {len(model)} items left")
