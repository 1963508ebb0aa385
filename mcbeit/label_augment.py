"""What finetuning does to images: crop, RandAugment and erasing to each, mixup and cutmix between those of a batch.

It is timm's where timm has it. timm draws from the global generators of Python, numpy and torch; `seeded` lends them a
seed, so that all of it is a function of (seed, epoch, image), and mixing one of (seed, step, worker).
"""

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from pydantic import Field, field_validator
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from mcbeit.augment import CropConfig, View, jitter, normalise, read_crop, read_views
from mcbeit.config import Config
from mcbeit.data import ViewDataset, step_generator
from mcbeit.image_files import COLOURS
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource

POLICY = re.compile(r"rand(-(m|n|mstd|mmax|p|inc)\d+(\.\d+)?)*")


class AugmentConfig(Config):
    """What is done to a crop beyond `crop`, and to the images of a batch; the defaults are BEiT's."""

    policy: str | None = "rand-m9-mstd0.5-inc1"  # RandAugment, in timm's words; it is for colours
    erase: float = Field(0.25, ge=0, le=1)  # probability that a rectangle of an image becomes noise
    mixup: float = Field(0.8, ge=0)  # alpha of the beta distribution that a batch's share is drawn from; 0: none
    cutmix: float = Field(1.0, ge=0)  # the same, of the area of the rectangle that comes from another image
    mix_probability: float = Field(1.0, ge=0, le=1)  # of a batch to be mixed
    cutmix_probability: float = Field(0.5, ge=0, le=1)  # of a mixed batch to be so by cutmix, where both are on
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # share of a target that all classes have alike

    @field_validator("policy")
    @classmethod
    def _is_known(cls, policy: str | None) -> str | None:
        if policy is not None and not POLICY.fullmatch(policy):
            raise ValueError(
                f"{policy!r} is no RandAugment of timm, such as rand-m9-mstd0.5-inc1: rand, then -mM (magnitude), "
                "-nN (operations), -mstdS, -mmaxM, -pP (probability), -inc1; null for none"
            )
        return policy

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with each other."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


class AugmentedDataset(ViewDataset):
    """A source as finetuning sees it: float32 views, normalised, then erased. Indexed by Key."""

    def __init__(
        self,
        source: ImageSource,
        *,
        seed: int,
        crop: CropConfig,
        augment: AugmentConfig,
        preprocess: Preprocess,
        num_dice: int = 0,
    ) -> None:
        self.view = View(preprocess.image_size, preprocess.interpolation)
        super().__init__(source, seed=seed, crop=crop, views=(self.view,), num_dice=num_dice)
        self.preprocess = preprocess
        self.erase = RandomErasing(augment.erase, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]  # timm's
        self.policy = None if augment.policy is None else rand_augment_transform(augment.policy, self._hints())

    @property
    def sample_bytes(self) -> int:
        """The size of one view."""
        return 4 * self.source.channels * self.view.size**2

    def render(self, data: bytes, rng: np.random.Generator) -> list[Float[Tensor, "channel size size"]]:
        """See `ViewDataset`."""
        if self.source.channels != COLOURS:
            (planes,) = read_views(data, self.crop, self.views, rng, self.source.channels)
            with seeded(rng):
                return [self.erase(self._normalised(planes))]
        image = self._square(data, rng)
        with seeded(rng):
            if self.policy is not None:
                image = self.policy(image)
            return [self.erase(self._normalised(torch.from_numpy(np.array(image)).permute(2, 0, 1)))]

    def _normalised(self, pixels: Tensor) -> Float[Tensor, "channel size size"]:
        return normalise(pixels[None], self.preprocess.mean, self.preprocess.std)[0].contiguous()

    def _square(self, data: bytes, rng: np.random.Generator) -> Image.Image:
        """A crop, resized by Pillow as the official code does it."""
        image, box = read_crop(data, self.crop, self.view.size, rng)
        method = Image.Resampling[self.view.interpolation.upper()]
        image = image.crop(box.edges).resize((self.view.size, self.view.size), method)
        if rng.random() < self.crop.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.crop.color_jitter:
            image = jitter(image, self.crop.color_jitter, rng)
        return image

    def _hints(self) -> dict[str, object]:
        """What timm's own transforms tell RandAugment: how far to shift, what to fill up with, how to interpolate."""
        return {
            "translate_const": int(self.view.size * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in self.preprocess.mean),
            "interpolation": Image.Resampling[self.view.interpolation.upper()],
        }


class Mixing:
    """Mixes the images of a worker's share of a batch, and makes the targets: smoothed, and mixed alike."""

    def __init__(self, config: AugmentConfig, num_classes: int, *, seed: int, rank: int = 0) -> None:
        self.seed, self.rank, self.num_classes, self.smoothing = seed, rank, num_classes, config.label_smoothing
        self.mixup: Mixup | None = None
        if config.mixes:
            self.mixup = Mixup(  # type: ignore[no-untyped-call]  # timm's
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_probability,
                switch_prob=config.cutmix_probability,
                mode="batch",
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(
        self, images: Float[Tensor, "batch channel height width"], labels: Int[Tensor, " batch"], step: int
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch class"]]:
        """Images and targets of a step; the images are mixed in place.

        Each image meets its mirror image in the order of the batch. The last of an odd number stays as it is, as timm
        wants even numbers.
        """
        targets = mixup_target(labels, self.num_classes, smoothing=self.smoothing)  # type: ignore[no-untyped-call]  # timm's
        if self.mixup is not None:
            even = len(images) // 2 * 2
            with seeded(step_generator(self.seed, step, self.rank)):
                _, targets[:even] = self.mixup(images[:even], labels[:even])
        return images, targets


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """In here the global generators that timm draws from begin at a number of `rng`; afterwards they are as before.

    Those are Python's, numpy's and torch's of the CPU.
    """
    number = int(rng.integers(2**32))
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that timm draws from
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - the same
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - the same
