"""Reading every image of a source once, by several processes, in order; what `mcbeit data check` and `stats` do."""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int
from torch.utils.data import Dataset

from mcbeit.config import Config, override, validate
from mcbeit.data import DataConfig, auto_workers, open_loader
from mcbeit.progress import Display
from mcbeit.sources import ImageSource

R = TypeVar("R")
Measure = Callable[[ImageSource, int], R]  # of a source and the number of an image; has to be importable
CHUNK = 32  # images that a process does at a time


class ScanConfig(Config):
    """What there is to say about a source: the section `data` of a run."""

    data: DataConfig = DataConfig()


class _Measured(Dataset[R], Generic[R]):
    def __init__(self, source: ImageSource, indices: Int[np.ndarray, " image"], measure: Measure[R]) -> None:
        self.source, self.indices, self.measure = source, indices, measure

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> R:
        return self.measure(self.source, int(self.indices[position]))


def scan_config(source: str, assignments: Sequence[str]) -> DataConfig:
    """The section `data` of a source with `data.key=value` overrides. Raises ConfigError with every mistake in it."""
    values = override({"data": {"source": source}}, assignments)
    return validate(ScanConfig, values, origin="the command line").data


def scan(
    source: ImageSource, indices: Int[np.ndarray, " image"], measure: Measure[R], config: DataConfig, *, title: str
) -> Iterator[R]:
    """What `measure` says of each image, in the order of `indices`; progress is shown on stderr."""
    loader = open_loader(
        _Measured(source, indices, measure),
        batch_size=CHUNK,
        num_workers=auto_workers(config),
        collate_fn=list,
    )
    with Display(title, len(indices)) as display:
        for chunk in loader:
            for found in chunk:
                yield found
                display.advance(f"{100 * (display.done + 1) // len(indices)} %")
