"""From a source to batches of views and masks.

Every random choice is a function of (seed, epoch, image) alone, and the batches of (seed, step): any number of
loader workers or training processes sees the same.
"""

import atexit
import math
import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcbeit.augment import CropConfig, View, read_views
from mcbeit.config import Config
from mcbeit.errors import DataError, ImageError
from mcbeit.group import Group
from mcbeit.image_files import COLOURS
from mcbeit.machine import num_cores
from mcbeit.masking import Grid, MaskConfig, draw_mask
from mcbeit.multichannel import require_tifffile
from mcbeit.sources import ImageSource, SourceKind, open_source
from mcbeit.sources.opening import FolderKind
from mcbeit.targets import masked_patch_ids

T = TypeVar("T")
MAX_TRIES = 100  # unreadable images in a row before a sample gives up
PREFETCH_BYTES = 2 * 2**30  # of decoded views that wait in all loader processes together, if one batch each is not more


class DataConfig(Config):
    """Which images, and how they are read."""

    source: str | list[str] | None = None  # a folder, a list file, or several of them
    kind: SourceKind = "auto"
    channels: int = Field(3, ge=1)  # 3: colours, whatever the files have; else TIFF or .npy files of so many channels
    max_corrupt_fraction: float = Field(0.01, ge=0, le=1)  # of the source's images; above it the run stops
    masks_per_image: int = Field(1, ge=1)  # each decoded and tokenized crop is used with this many masks
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # loader processes; does not change the batches

    def required_source(self) -> str | list[str]:
        """The source; raises DataError if the preset left it open."""
        if self.source is None:
            raise DataError("data.source is not set; say where your images are, for example data.source=~/photos")
        return self.source

    def open(self, *, folders: FolderKind = "folder") -> ImageSource:
        """The source, checked; `folders` says what `auto` takes a folder as.

        Raises DataError if the preset left it open, or if it cannot be used.
        """
        source = open_source(self.required_source(), self.kind, folders=folders, channels=self.channels)
        if self.channels != COLOURS and source.name(0).lower().endswith((".tif", ".tiff")):
            require_tifffile()  # here, where the error is one line, not in a loader process
        return source

    def check_channels(self, mean: Sequence[float], *, section: str, crop: CropConfig | None = None) -> None:
        """Raise ValueError unless a section's mean has a number per channel, and crops change colours of colours only.

        Its std has as many numbers as its mean.
        """
        if len(mean) != self.channels:
            source = self.source if isinstance(self.source, str) else "SOURCE"
            raise ValueError(
                f"{section}.mean and {section}.std have {len(mean)} numbers each, for data.channels={self.channels}; "
                f"measure them with: mcbeit data stats {source} data.channels={self.channels}"
            )
        if crop is not None and crop.color_jitter and self.channels != COLOURS:
            raise ValueError(
                f"crop.color_jitter={crop.color_jitter:g} is for colours; data.channels is {self.channels}"
            )


class Key(NamedTuple):
    """One use of one image."""

    epoch: int
    image: int


class Corrupt(NamedTuple):
    """An image that could not be used, and why."""

    image: int
    reason: str


class Loaded(NamedTuple):
    """What a data set makes of one image."""

    views: list[Shaped[Tensor, "channel height width"]]
    targets: dict[str, Tensor]  # what is marked in it, by name; of any size, so they are not stacked. Usually empty


class Sample(NamedTuple):
    """The views of one crop and its masks."""

    image: int  # its number in the source: that of the replacement, if the one asked for is corrupt
    views: list[Shaped[Tensor, "channel size size"]]  # empty if MAX_TRIES images in a row cannot be read
    masks: Bool[Tensor, "mask patch"]
    dice: Float[Tensor, "mask die"]
    corrupt: list[Corrupt]
    targets: dict[str, Tensor]  # see `Loaded`


class Batch(NamedTuple):
    """Samples, stacked. With several masks per image, the masks of one image follow each other."""

    images: Int[Tensor, " image"]  # their numbers in the source
    # each [image, channel, size, size], uint8 colours or float32; empty if a sample gave up: see `check_readable`
    views: list[Tensor]
    masks: Bool[Tensor, "image_mask patch"]
    patch_ids: Int[Tensor, "image_mask masked"]  # the masked patches, ascending
    dice: Float[Tensor, "image_mask die"]  # uniform in [0, 1): what the model's own choices are made by
    corrupt: list[Corrupt]
    targets: Sequence[dict[str, Tensor]] = ()  # one for each image, see `Loaded`

    @property
    def num_rows(self) -> int:
        """Images, each counted once per mask."""
        return len(self.dice)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy overlaps with work there if the batch is pinned."""
        return self._replace(
            views=[view.to(device, non_blocking=True) for view in self.views],
            masks=self.masks.to(device, non_blocking=True),
            patch_ids=self.patch_ids.to(device, non_blocking=True),
            dice=self.dice.to(device, non_blocking=True),
            targets=[
                {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in self.targets
            ],
        )


def sample_generator(seed: int, key: Key) -> np.random.Generator:
    """The generator of everything random about one use of one image."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, key.image, key.epoch]))


def step_generator(seed: int, step: int, rank: int) -> np.random.Generator:
    """The generator of what one worker draws for a whole step."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, rank, step]))


def epoch_order(num_images: int, seed: int, epoch: int) -> Int[np.ndarray, " image"]:
    """The order of an epoch: a permutation of all images."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, 0, epoch])).permutation(num_images)


def batch_keys(num_images: int, batch_size: int, seed: int, steps: range) -> Iterator[list[Key]]:
    """The keys of the batches of some steps; an epoch has `num_images // batch_size` steps, the rest is left out."""
    per_epoch = num_images // batch_size
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in steps:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(num_images, seed, epoch)
        start = step % per_epoch * batch_size
        yield [Key(epoch, int(index)) for index in order[start : start + batch_size]]


class ViewDataset(Dataset[Sample]):
    """A source seen through random crops; indexed by Key. An unreadable image is replaced by another, and reported."""

    def __init__(
        self,
        source: ImageSource,
        *,
        seed: int,
        crop: CropConfig,
        views: tuple[View, ...],
        grid: Grid = (1, 1),
        mask: MaskConfig | None = None,
        masks_per_image: int = 1,
        num_dice: int = 0,
    ) -> None:
        self.source, self.seed, self.crop, self.views, self.num_dice = source, seed, crop, views, num_dice
        self.grid, self.mask, self.masks_per_image = grid, mask, masks_per_image

    def __len__(self) -> int:
        return len(self.source)

    @property
    def sample_bytes(self) -> int:
        """The size of the views of one image."""
        channels = self.source.channels
        pixel_bytes = channels if channels == COLOURS else 4 * channels  # uint8, or float32
        return pixel_bytes * sum(view.size**2 for view in self.views)

    def render(self, data: bytes, rng: np.random.Generator) -> list[Tensor]:
        """The views of an image file. Raises ImageError if it cannot be decoded."""
        return read_views(data, self.crop, self.views, rng, self.source.channels)

    def load(self, index: int, rng: np.random.Generator) -> Loaded:
        """All that a sample shows of one image: its views, and in other data sets what is marked in it.

        Raises ImageError or OSError if it cannot be read; another image then takes its place.
        """
        return Loaded(self.render(self.source.read(index), rng), {})

    def __getitem__(self, key: Key) -> Sample:
        rng = sample_generator(self.seed, key)
        index, (views, targets), corrupt = self._read(key.image, rng)
        masks = [draw_mask(self.grid, self.mask, rng).reshape(-1) for _ in range(self.masks_per_image) if self.mask]
        stacked = np.stack(masks) if masks else np.zeros((0, self.grid[0] * self.grid[1]), dtype=bool)
        dice = rng.random((self.masks_per_image, self.num_dice), dtype=np.float32)
        return Sample(index, views, torch.from_numpy(stacked), torch.from_numpy(dice), corrupt, targets)

    def _read(self, index: int, rng: np.random.Generator) -> tuple[int, Loaded, list[Corrupt]]:
        corrupt: list[Corrupt] = []
        for _ in range(MAX_TRIES):
            try:
                return index, self.load(index, rng), corrupt
            except (ImageError, OSError) as error:
                corrupt.append(Corrupt(index, " ".join(str(error).split())))
                index = int(rng.integers(len(self.source)))
        return index, Loaded([], {}), corrupt


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    masks = torch.cat([sample.masks for sample in samples])
    is_whole = all(sample.views for sample in samples)
    return Batch(
        images=torch.tensor([sample.image for sample in samples]),
        views=[torch.stack(views) for views in zip(*(s.views for s in samples), strict=True)] if is_whole else [],
        masks=masks,
        patch_ids=masked_patch_ids(masks) if len(masks) else torch.zeros((0, 0), dtype=torch.int64),
        dice=torch.cat([sample.dice for sample in samples]),
        corrupt=[bad for sample in samples for bad in sample.corrupt],
        targets=[sample.targets for sample in samples],
    )


def check_readable(batch: Batch, source: ImageSource) -> Batch:
    """The batch, if it has images. Raises DataError if a sample found MAX_TRIES unreadable ones in a row."""
    if batch.views:
        return batch
    bad = batch.corrupt[0]
    raise DataError(
        f"{MAX_TRIES} images in a row cannot be read, such as '{source.name(bad.image)}': {bad.reason}; "
        "check that data.source holds images"
    )


def make_loader(
    dataset: ViewDataset, keys: Iterable[list[Key]], batch_size: int, *, num_workers: int, pin: bool
) -> DataLoader[Sample]:
    """A loader of batches in the order of `keys`, one pass. `batch_size` bounds how far it reads ahead."""
    ahead = PREFETCH_BYTES // (batch_size * dataset.sample_bytes * max(num_workers, 1))
    return open_loader(
        dataset,
        batch_sampler=keys,  # an iterator of keys serves for one pass
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=min(max(ahead, 1), 4) if num_workers else None,
    )


def open_loader(dataset: Dataset[T], **options: Any) -> DataLoader[T]:
    """A loader whose processes go on when everybody is asked to stop: the one that trains ends them at last.

    Their seeds come from a generator of their own, as the global one belongs to the training.
    """
    if options.get("num_workers"):
        atexit.unregister(_end_loaders)  # once is enough
        atexit.register(_end_loaders)
    return DataLoader(dataset, generator=torch.Generator(), worker_init_fn=_outlive, **options)


def _outlive(worker: int) -> None:
    """Schedulers of clusters send SIGTERM to every process of a job."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end_loaders() -> None:
    """An error in a loader that nobody caught leaves its processes, for which multiprocessing would wait for ever."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error for each that is killed
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def make_share_loader(
    dataset: ViewDataset, keys: Iterator[list[Key]], batch_size: int, config: DataConfig, group: Group, *, pin: bool
) -> DataLoader[Sample]:
    """A loader of this worker's share of the batches of `keys`, which have `batch_size` images each."""
    shares = (list(group.share(batch)) for batch in keys)
    num_workers = auto_workers(config, sharing=group.local_size)
    return make_loader(dataset, shares, math.ceil(batch_size / group.size), num_workers=num_workers, pin=pin)


def auto_workers(config: DataConfig, *, sharing: int = 1) -> int:
    """Loader processes: as configured, or half of the cores that this process may use, at most 8.

    `sharing` processes share the cores.
    """
    return config.num_workers if config.num_workers != "auto" else min(8, max(1, int(num_cores() / 2 / sharing)))
