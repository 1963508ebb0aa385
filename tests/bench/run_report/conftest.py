"""Finished runs of a second on shapes and their reports, made once for all tests of `mcbeit.bench`."""

import shutil
from pathlib import Path

import pytest
from tiny import pretrain_config, tokenizer_config, write_shapes

from mcbeit.bench.run_report.report import report
from mcbeit.pretrain import pretrain
from mcbeit.tokenizer_training import train_tokenizer


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with 40 labelled images of two classes, `val/` with 24 others, and `tokenizer/`, a tokenizer run."""
    folder = tmp_path_factory.mktemp("bench")
    write_shapes(folder / "train", count=40)
    write_shapes(folder / "val", count=24, seed=1)
    enough = {"steps": 60, "warmup_epochs": 1, "batch_size": 8, "lr": 1e-2, "weight_decay": 0}
    train_tokenizer(tokenizer_config(folder / "train", folder / "tokenizer", optim=enough))
    return folder


@pytest.fixture(scope="session")
def finished(shapes: Path) -> Path:
    """A pretraining run with held-out labelled images, not to be changed."""
    labels = {"queries": str(shapes / "val"), "every_epochs": 1.0}
    data = {"source": str(shapes / "train"), "kind": "imagefolder", "num_workers": 0}
    pretrain(pretrain_config(shapes / "train", shapes / "tokenizer", shapes / "run", data=data, eval=labels))
    return shapes / "run"


@pytest.fixture(scope="session")
def reported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with its report, not to be changed."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("reported") / "demo")
    report(run)
    return run


@pytest.fixture(scope="session")
def unlabelled(shapes: Path) -> Path:
    """A run on images without labels, with its report, not to be changed."""
    pretrain(pretrain_config(shapes / "train", shapes / "tokenizer", shapes / "unlabelled"))
    report(shapes / "unlabelled")
    return shapes / "unlabelled"


@pytest.fixture
def run(reported: Path, tmp_path: Path) -> Path:
    """A copy of the finished run and its report."""
    return shutil.copytree(reported, tmp_path / "demo")
