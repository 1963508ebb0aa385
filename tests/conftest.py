"""Settings that hold for every test."""

import os

import pytest
from hypothesis import settings

# One thread, set before torch is imported: threads that wait for each other take minutes on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, no files left in the checkout, and no verdict by the clock of a busy machine.
settings.register_profile("mcbeit", derandomize=True, database=None, deadline=None)
settings.load_profile("mcbeit")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's cache is not ours to fill."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
