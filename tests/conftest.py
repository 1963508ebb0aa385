"""Settings that hold for every test."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# One thread, set before torch is imported: threads that wait for each other take minutes on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts pytest in the background lets it ignore Ctrl-C, and all that it starts, which tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, no files left in the checkout, and no verdict by the clock of a busy machine.
settings.register_profile("mcbeit", derandomize=True, database=None, deadline=None)
settings.load_profile("mcbeit")


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's cache is not ours to fill."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 24 images, two classes; not to be written to."""
    from tiny import write_shapes

    return write_shapes(tmp_path_factory.mktemp("images") / "shapes")


@pytest.fixture(scope="session")
def trained_tokenizer(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small tokenizer that was trained on `shapes`; not to be written to."""
    from tiny import tokenizer_config

    from mcbeit.tokenizer_training import train_tokenizer

    run = tmp_path_factory.mktemp("runs") / "tokenizer"
    optim = {"steps": 60, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    train_tokenizer(tokenizer_config(shapes, run, optim=optim))
    return run


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config file of a run that is long enough to be killed."""
    from processes import write_job

    return write_job(tmp_path_factory.mktemp("job"))
