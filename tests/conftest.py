"""Settings that hold for every test."""

from hypothesis import settings

# The same examples in every run, no files left in the checkout, and no verdict by the clock of a busy machine.
settings.register_profile("mcbeit", derandomize=True, database=None, deadline=None)
settings.load_profile("mcbeit")
