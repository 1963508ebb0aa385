"""What the jobs that make a tokenizer read: one view of random crops, without masks."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader

from mcbeit.augment import CropConfig, View
from mcbeit.data import DataConfig, Key, Sample, ViewDataset, auto_workers, batch_keys, make_loader
from mcbeit.optim import DurationConfig
from mcbeit.preprocess import Interpolation
from mcbeit.sources import ImageSource


@runtime_checkable
class CropRun(Protocol):
    """The config of such a job."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def crop(self) -> CropConfig: ...
    @property
    def image_size(self) -> int: ...
    @property
    def interpolation(self) -> Interpolation: ...
    @property
    def optim(self) -> DurationConfig: ...


def crop_dataset(config: CropRun, source: ImageSource) -> ViewDataset:
    """The source as crops of the size that the tokenizer is made on."""
    view = View(config.image_size, config.interpolation)
    return ViewDataset(source, seed=config.seed, crop=config.crop, views=(view,))


def crop_keys(config: CropRun, source: ImageSource, steps: range) -> Iterator[list[Key]]:
    """The keys of the batches of some steps."""
    return batch_keys(len(source), config.optim.batch_size, config.seed, steps)


def crop_loader(config: CropRun, dataset: ViewDataset, steps: range, device: torch.device) -> DataLoader[Sample]:
    """The batches of some steps, read ahead by loader processes."""
    return make_loader(
        dataset,
        crop_keys(config, dataset.source, steps),
        config.optim.batch_size,
        num_workers=auto_workers(config.data),
        pin=device.type == "cuda",
    )
