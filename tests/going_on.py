"""What tests of jobs that start from trained models look at."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcbeit.checkpoint import load_checkpoint


def tensors_of(run: Path) -> dict[str, Tensor]:
    """The model of the newest checkpoint of a run."""
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors["model"]


def other(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    """The names of what differs."""
    assert one.keys() == two.keys()
    return sorted(name for name in one if not torch.equal(one[name], two[name]))


def line_of(parts: Any) -> str:
    """The account of a model that has been built."""
    line: str = parts.state.numbers["init"][0]
    return line
