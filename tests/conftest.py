"""Settings that hold for every test."""

import os

from hypothesis import settings

# One thread, set before torch is imported: threads that wait for each other take minutes on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, no files left in the checkout, and no verdict by the clock of a busy machine.
settings.register_profile("mcbeit", derandomize=True, database=None, deadline=None)
settings.load_profile("mcbeit")
