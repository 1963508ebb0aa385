"""Views of finetuning: as timm would make them, repeatable, and no trace left in anybody's random numbers."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from tiny import CHANNELS, write_planes, write_shapes

from mcbeit.augment import CropConfig
from mcbeit.config import validate
from mcbeit.data import Key, Sample, batch_keys, make_loader, sample_generator, step_generator
from mcbeit.errors import ConfigError
from mcbeit.label_augment import AugmentConfig, AugmentedDataset, Mixing, seeded
from mcbeit.preprocess import Preprocess
from mcbeit.sources import open_source

WHOLE = CropConfig(scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0)
PLAIN = AugmentConfig(policy=None, erase=0.0)
KEY = Key(2, 5)


def augmented(
    folder: Path, augment: AugmentConfig = PLAIN, crop: CropConfig = WHOLE, **options: Any
) -> AugmentedDataset:
    preprocess = options.pop("preprocess", Preprocess(image_size=16))
    return AugmentedDataset(
        open_source(str(folder)), seed=3, crop=crop, augment=augment, preprocess=preprocess, **options
    )


def view_of(sample: Sample) -> torch.Tensor:
    (view,) = sample.views
    return view


def global_states() -> list[Any]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - the one that timm draws from
    return [random.getstate(), keys.tolist(), rest, torch.get_rng_state().tolist()]


# views


def test_view__without_options_is_the_crop_that_pillow_makes(shapes: Path) -> None:
    dataset = augmented(shapes)
    with Image.open(dataset.source.name(KEY.image)) as image:
        pixels = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC))
    wanted = torch.from_numpy(dataset.preprocess.normalise(pixels)).permute(2, 0, 1)
    torch.testing.assert_close(view_of(dataset[KEY]), wanted, rtol=0, atol=1e-6)
    assert dataset.sample_bytes == 4 * 3 * 16 * 16


def test_view__is_the_randaugment_of_timm(shapes: Path) -> None:
    dataset = augmented(shapes, AugmentConfig(policy="rand-m9-mstd0.5-inc1", erase=0.0))
    assert dataset.policy is not None
    middle = (124, 116, 104)  # ImageNet's mean, to fill up with
    hints = {"translate_const": 7, "img_mean": middle, "interpolation": Image.Resampling.BICUBIC}
    assert repr(dataset.policy) == repr(rand_augment_transform("rand-m9-mstd0.5-inc1", hints))
    assert {tuple(sorted(op.hparams.items(), key=str)) for op in dataset.policy.ops} == {
        tuple(sorted({**hints, "magnitude_std": 0.5}.items(), key=str))
    }
    plain = augmented(shapes)
    changed = [not torch.equal(view_of(dataset[Key(0, i)]), view_of(plain[Key(0, i)])) for i in range(24)]
    assert 12 <= sum(changed) < 24  # two operations, each with probability 0.5


def test_view__is_erased_after_it_was_normalised(shapes: Path) -> None:
    erased, plain = augmented(shapes, AugmentConfig(policy=None, erase=1.0)), augmented(shapes)
    differs = view_of(erased[KEY]) != view_of(plain[KEY])
    assert torch.equal(differs.all(dim=0), differs.any(dim=0))
    rows, columns = differs[0].any(dim=1).nonzero(), differs[0].any(dim=0).nonzero()
    size = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert int(differs[0].sum()) == int(size)  # one rectangle
    assert 0.02 * 256 - 8 <= int(size) <= 256 / 3 + 8
    noise = torch.cat(
        [view_of(erased[Key(0, i)])[view_of(erased[Key(0, i)]) != view_of(plain[Key(0, i)])] for i in range(24)]
    )
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1, abs=0.1)


def test_view__flip_and_jitter(shapes: Path) -> None:
    plain = view_of(augmented(shapes)[KEY])
    flipped = view_of(augmented(shapes, crop=WHOLE.model_copy(update={"flip": 1.0}))[KEY])
    assert torch.equal(flipped, plain.flip(-1))
    jittered = view_of(augmented(shapes, crop=WHOLE.model_copy(update={"color_jitter": 0.4}))[KEY])
    assert not torch.equal(jittered, plain)


def test_view__depends_on_seed_epoch_and_image_alone(shapes: Path) -> None:
    options: dict[str, Any] = {"augment": AugmentConfig(erase=1.0), "crop": CropConfig(), "num_dice": 4}
    one = augmented(shapes, **options)[KEY]
    random.seed(1)
    torch.manual_seed(1)
    two = augmented(shapes, **options)[KEY]
    assert torch.equal(view_of(one), view_of(two))
    assert torch.equal(one.dice, two.dice)
    for other in (Key(3, 5), Key(2, 6)):
        assert not torch.equal(view_of(augmented(shapes, **options)[other]), view_of(one))


def test_view__is_the_same_from_any_number_of_loader_processes(shapes: Path) -> None:
    dataset = augmented(shapes, AugmentConfig(erase=0.5), CropConfig(), num_dice=2)
    batches = []
    for num_workers in (0, 2):
        keys = batch_keys(len(dataset), 8, seed=3, steps=range(3))
        batches.append(list(make_loader(dataset, keys, 8, num_workers=num_workers, pin=False)))
    for one, two in zip(*batches, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.views[0], two.views[0])
        assert torch.equal(one.dice, two.dice)
        assert one.num_rows == 8


def test_seeded__leaves_the_global_generators_as_they_were() -> None:
    before = global_states()
    draws = []
    for _ in range(2):
        with seeded(np.random.default_rng(1)):
            draws.append((random.random(), np.random.random(), float(torch.rand(()))))  # noqa: NPY002 - timm's
    assert draws[0] == draws[1]
    with pytest.raises(ValueError, match="in there"), seeded(np.random.default_rng(2)):
        raise ValueError("in there")
    assert global_states() == before


def test_view__of_other_channels(tmp_path: Path) -> None:
    config = CHANNELS["preprocess"]
    source = open_source(str(write_planes(tmp_path, count=2)), channels=5)
    dataset = AugmentedDataset(
        source,
        seed=0,
        crop=WHOLE,
        augment=AugmentConfig(policy=None, erase=1.0),
        preprocess=validate(Preprocess, config),
    )
    view = view_of(dataset[Key(0, 0)])
    assert (view.shape, view.dtype) == ((5, 16, 16), torch.float32)
    assert dataset.sample_bytes == 4 * 5 * 16 * 16


def test_view__an_unreadable_image_is_replaced(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path, count=4)
    (folder / "disc" / "000.png").write_bytes(b"")
    sample = augmented(folder)[Key(0, 0)]
    assert sample.image != 0
    assert [(bad.image, bad.reason) for bad in sample.corrupt] == [(0, "the file is empty")]


# mixing


def mixed(config: AugmentConfig, *, count: int = 6, step: int = 4, rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return Mixing(config, 4, seed=9, rank=rank)(images, torch.arange(count) % 4, step)


def test_mixing__is_the_mixup_of_timm(shapes: Path) -> None:
    config = AugmentConfig()
    images, targets = mixed(config)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=1.0, switch_prob=0.5, mode="batch", num_classes=4)
    with seeded(step_generator(9, 4, 0)):
        wanted = theirs(torch.arange(6.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone(), torch.arange(6) % 4)
    assert torch.equal(images, wanted[0])
    assert torch.equal(targets, wanted[1])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(6))


def test_mixing__off_smooths_the_targets_only() -> None:
    images, targets = mixed(AugmentConfig(mixup=0.0, cutmix=0.0, label_smoothing=0.2), count=2)
    assert images[:, 0, 0, 0].tolist() == [0, 1]
    expected = torch.tensor([[0.85, 0.05, 0.05, 0.05], [0.05, 0.85, 0.05, 0.05]])
    torch.testing.assert_close(targets, expected)
    hard = mixed(AugmentConfig(mix_probability=0.0, label_smoothing=0.0), count=2)[1]
    assert torch.equal(hard, torch.eye(4)[:2])


@pytest.mark.parametrize("config", [AugmentConfig(cutmix=0.0), AugmentConfig(mixup=0.0)], ids=["mixup", "cutmix"])
def test_mixing__targets_say_what_is_in_the_image(config: AugmentConfig) -> None:
    images, targets = mixed(config.model_copy(update={"label_smoothing": 0.0}), count=4)
    meant = (targets * torch.arange(4.0)).sum(dim=1)  # image i is all i, and of class i
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), meant)


def test_mixing__the_last_of_an_odd_number_stays_as_it_is() -> None:
    images, targets = mixed(AugmentConfig(cutmix=0.0), count=5)
    assert (images[4] == 4).all()
    assert targets[4].argmax() == 0
    assert float(targets[4].max()) == pytest.approx(0.925)
    assert (images[0] != 0).any()
    alone, _ = mixed(AugmentConfig(), count=1)
    assert (alone == 0).all()


def test_mixing__depends_on_seed_step_and_worker_alone() -> None:
    config = AugmentConfig(cutmix=0.0)
    before = global_states()
    assert torch.equal(mixed(config)[0], mixed(config)[0])
    assert global_states() == before
    others = [mixed(config, step=5), mixed(config, rank=1)]
    assert not any(torch.equal(images, mixed(config)[0]) for images, _ in others)


def test_step_generator__is_not_that_of_a_sample() -> None:
    draws = {float(generator.random()) for generator in (step_generator(1, 7, 0), step_generator(1, 0, 7))}
    draws |= {float(sample_generator(1, key).random()) for key in (Key(7, 0), Key(0, 7))}
    assert len(draws) == 4


# config


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand", "rand-m5-n3-p0.3-mmax10", None])
def test_augment_config__takes_what_timm_takes(policy: str | None) -> None:
    assert AugmentConfig(policy=policy).policy == policy


@pytest.mark.parametrize("policy", ["augmix-m3", "rand-x9", "rand-inc", "m9", ""])
def test_augment_config__refuses_another_policy(policy: str) -> None:
    with pytest.raises(ConfigError, match="is no RandAugment of timm, such as rand-m9"):
        validate(AugmentConfig, {"policy": policy})


def test_augment_config__knows_whether_it_mixes() -> None:
    assert AugmentConfig().mixes
    assert AugmentConfig(cutmix=0.0).mixes
    assert not AugmentConfig(mixup=0.0, cutmix=0.0).mixes
    assert not AugmentConfig(mix_probability=0.0).mixes
