import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import broken_images, encode, good_images, photo, write_images

import mcbeit.data as module
from mcbeit.augment import CropConfig, View
from mcbeit.config import validate
from mcbeit.corrupt import CorruptImages
from mcbeit.data import (
    Batch,
    DataConfig,
    Key,
    Loaded,
    ViewDataset,
    auto_workers,
    batch_keys,
    check_readable,
    collate,
    epoch_order,
    make_loader,
    sample_generator,
)
from mcbeit.errors import ConfigError, DataError
from mcbeit.masking import MaskConfig
from mcbeit.sources import open_source

NUM_PHOTOS = 14
GOOD, BROKEN = good_images(), broken_images()
VIEWS = (View(16, "bicubic"), View(8, "lanczos"))
pytestmark = [
    # Loader processes are what is tested here, on machines with few cores and with other threads running
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, {f"{i:02}.png": encode(photo(20, 24, seed=i)) for i in range(NUM_PHOTOS)})
    return folder


def dataset(folder: Path, *, seed: int = 0, masks_per_image: int = 1, **crop: Any) -> ViewDataset:
    return ViewDataset(
        open_source(str(folder)),
        seed=seed,
        crop=CropConfig(**crop),
        views=VIEWS,
        grid=(4, 4),
        mask=MaskConfig(),
        masks_per_image=masks_per_image,
    )


def load(data: ViewDataset, steps: range, *, num_workers: int = 0, batch_size: int = 4) -> list[Batch]:
    keys = batch_keys(len(data), batch_size, data.seed, steps)
    return list(make_loader(data, keys, batch_size, num_workers=num_workers, pin=False))


def same(first: Batch, second: Batch) -> bool:
    views = zip(first.views, second.views, strict=True)
    others = [(first.images, second.images), (first.masks, second.masks), (first.patch_ids, second.patch_ids)]
    return all(torch.equal(a, b) for a, b in [*views, *others]) and first.corrupt == second.corrupt


# which images, in which order


def test_epoch_order__is_a_permutation_of_its_own_for_every_epoch_and_seed() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1, 2**63) for epoch in (0, 1, 799)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)
    assert epoch_order(50, 1, 799).tolist() == epoch_order(50, 1, 799).tolist() == orders[5]


def test_batch_keys__an_epoch_has_every_image_at_most_once() -> None:
    batches = list(batch_keys(14, 4, 0, range(6)))  # three steps per epoch
    assert [{key.epoch for key in keys} for keys in batches] == [{0}] * 3 + [{1}] * 3
    for epoch in (0, 1):
        images = [key.image for keys in batches for key in keys if key.epoch == epoch]
        assert images == epoch_order(14, 0, epoch)[:12].tolist()


@pytest.mark.parametrize("start", range(9))
def test_batch_keys__may_start_at_any_step(start: int) -> None:
    whole = list(batch_keys(14, 4, 3, range(9)))
    assert list(batch_keys(14, 4, 3, range(start, 9))) == whole[start:]


def test_batch_keys__are_made_when_they_are_needed() -> None:
    endless = batch_keys(8, 4, 0, range(10**12))
    assert [len(keys) for keys in islice(endless, 3)] == [4, 4, 4]


# one sample


def test_sample_generator__depends_on_seed_epoch_and_image() -> None:
    drawn = [sample_generator(s, Key(e, i)).random() for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert len(set(drawn)) == len(drawn)
    assert sample_generator(1, Key(1, 0)).random() == drawn[6]


def test_dataset__a_sample_depends_on_its_key_alone(photos) -> None:
    data = dataset(photos)
    keys = [Key(epoch, image) for epoch in (0, 1) for image in range(5)]
    forwards = {key: data[key] for key in keys}
    for key in reversed(keys):
        assert same(collate([data[key]]), collate([forwards[key]]))
        assert same(collate([dataset(photos)[key]]), collate([forwards[key]]))


def test_dataset__every_epoch_and_seed_has_another_crop_and_mask(photos) -> None:
    first, *others = (dataset(photos, seed=seed)[Key(epoch, 3)] for seed, epoch in [(0, 0), (0, 1), (1, 0)])
    for other in others:
        assert not torch.equal(other.views[0], first.views[0])
        assert not torch.equal(other.masks, first.masks)


def test_dataset__masks_hide_the_configured_share(photos) -> None:
    sample = dataset(photos)[Key(0, 0)]
    assert [view.shape for view in sample.views] == [(3, 16, 16), (3, 8, 8)]
    assert sample.masks.shape == (1, 16)
    assert sample.masks.sum() == 12  # 0.75 * 4 * 4


def test_dataset__may_have_no_masks(photos) -> None:
    data = ViewDataset(open_source(str(photos)), seed=0, crop=CropConfig(), views=VIEWS[:1])
    batch = collate([data[Key(0, 0)], data[Key(0, 1)]])
    assert batch.views[0].shape == (2, 3, 16, 16)
    assert batch.masks.shape == (0, 1)
    assert batch.patch_ids.shape == (0, 0)


def test_dataset__several_masks_share_one_crop(photos) -> None:
    one, three = (
        collate([data[Key(0, i)] for i in range(4)]) for data in (dataset(photos), dataset(photos, masks_per_image=3))
    )
    assert three.masks.shape == (12, 16)
    assert three.patch_ids.shape == (12, 12)
    assert all(torch.equal(a, b) for a, b in zip(one.views, three.views, strict=True))
    assert torch.equal(three.masks[::3], one.masks)  # the masks of one image follow each other
    assert len({tuple(mask.tolist()) for mask in three.masks[:3]}) == 3


# batches


def test_collate__patch_ids_are_the_masked_patches(photos) -> None:
    (batch,) = load(dataset(photos), range(1))
    for mask, ids in zip(batch.masks, batch.patch_ids, strict=True):
        assert ids.tolist() == mask.nonzero()[:, 0].tolist()
    assert batch.images.tolist() == epoch_order(NUM_PHOTOS, 0, 0)[:4].tolist()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_make_loader__workers_do_not_change_the_batches(num_workers: int, photos) -> None:
    data = dataset(photos, masks_per_image=2, color_jitter=0.4)
    here, there = load(data, range(5)), load(data, range(5), num_workers=num_workers)
    assert len(here) == len(there) == 5
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_make_loader__a_resumed_run_sees_the_same_batches(photos) -> None:
    whole, rest = load(dataset(photos), range(7)), load(dataset(photos), range(4, 7))
    assert all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_make_loader__parts_of_a_batch_are_that_batch(photos) -> None:
    """As data-parallel workers take them: the keys of a global batch, cut into one slice per rank."""
    data = dataset(photos, masks_per_image=2)
    keys = list(batch_keys(len(data), 6, 0, range(2)))
    parts = [list(make_loader(data, [k[rank::2] for k in keys], 3, num_workers=0, pin=False)) for rank in (0, 1)]
    for whole, first, second in zip(load(data, range(2), batch_size=6), *parts, strict=True):
        assert torch.equal(whole.views[0][0::2], first.views[0])
        assert torch.equal(whole.views[1][1::2], second.views[1])
        masks = whole.masks.view(6, 2, 16)
        assert torch.equal(masks[0::2].flatten(0, 1), first.masks)
        assert torch.equal(masks[1::2].flatten(0, 1), second.masks)


def test_make_loader__leaves_the_global_generators_alone(photos) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load(dataset(photos, color_jitter=0.2), range(2))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_batch__to_a_device(photos) -> None:
    (batch,) = load(dataset(photos), range(1))
    moved = batch.to(torch.device("meta"))
    assert {t.device.type for t in (*moved.views, moved.masks, moved.patch_ids)} == {"meta"}
    assert same(batch.to(torch.device("cpu")), batch)


# good and bad files


def test_dataset__reads_every_kind_of_file(tmp_path) -> None:
    write_images(tmp_path, GOOD)
    (batch,) = load(dataset(tmp_path), range(1), batch_size=len(GOOD))
    assert batch.corrupt == []
    assert sorted(batch.images.tolist()) == list(range(len(GOOD)))
    assert (batch.views[0].flatten(1).float().std(dim=1) > 1).all()


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Twelve photos, and after them in sorted order a text, half a JPEG, and a link to nowhere."""
    good = {f"{i:02}.png": encode(photo(20, 24, seed=i)) for i in range(12)}
    write_images(tmp_path / "damaged", {**good, "text.png": BROKEN["text.png"], "torn.jpg": BROKEN["half.jpg"]})
    (tmp_path / "damaged" / "zero.png").symlink_to(tmp_path / "gone.png")
    return tmp_path / "damaged"


def test_dataset__replaces_a_bad_file_always_by_the_same_and_reports_it(damaged) -> None:
    data = dataset(damaged)
    for image, reason in [(12, "not a JPEG, PNG"), (13, "the JPEG data is truncated"), (14, "No such file")]:
        sample = data[Key(0, image)]
        assert sample.corrupt[0].image == image
        assert reason in sample.corrupt[0].reason
        assert sample.image < 12
        assert same(collate([sample]), collate([data[Key(0, image)]]))
    assert len({data[Key(epoch, 12)].image for epoch in range(20)}) > 5


class Marked(ViewDataset):
    """Each image has as many boxes as its number."""

    def load(self, index: int, rng: np.random.Generator) -> Loaded:
        views, _ = super().load(index, rng)
        return Loaded(views, {"boxes": torch.full((index, 4), float(rng.random()))})


@pytest.mark.parametrize("num_workers", [0, 1])
def test_dataset__may_load_what_is_marked_in_an_image(num_workers: int, photos) -> None:
    data = Marked(open_source(str(photos)), seed=0, crop=CropConfig(), views=VIEWS[:1])
    (batch,) = load(data, range(1), num_workers=num_workers)
    boxes = [target["boxes"] for target in batch.targets]
    assert [len(found) for found in boxes] == batch.images.tolist()
    for key, found in zip(next(batch_keys(len(data), 4, 0, range(1))), boxes, strict=True):
        assert torch.equal(found, data[key].targets["boxes"])
    assert {target["boxes"].device.type for target in batch.to(torch.device("meta")).targets} == {"meta"}


def test_dataset__marks_of_an_unreadable_image_are_those_of_its_replacement(damaged) -> None:
    data = Marked(open_source(str(damaged)), seed=0, crop=CropConfig(), views=VIEWS[:1])
    sample = data[Key(0, 13)]
    assert sample.corrupt[0].image == 13
    assert len(sample.targets["boxes"]) == sample.image < 12


@pytest.mark.parametrize("num_workers", [0, 2])
def test_corrupt_images__lists_each_once_with_its_reason(num_workers: int, damaged, tmp_path) -> None:
    data = dataset(damaged)
    listed = CorruptImages(data.source, tmp_path / "corrupt.txt", max_fraction=0.2)
    for batch in load(data, range(6), batch_size=5, num_workers=num_workers):  # two epochs
        listed.add(batch.corrupt)
    assert len(listed) == 3
    lines = dict(line.split("\t") for line in (tmp_path / "corrupt.txt").read_text().splitlines())
    assert lines == {
        f"{damaged}/text.png": "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        f"{damaged}/torn.jpg": "the JPEG data is truncated or corrupt",
        f"{damaged}/zero.png": f"[Errno 2] No such file or directory: '{damaged}/zero.png'",
    }


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_images__are_listed_where_nothing_can_be_read(num_workers: int, tmp_path) -> None:
    write_images(tmp_path / "bad", BROKEN | {"page.svg.png": b"<svg/>"})
    data = dataset(tmp_path / "bad")
    (batch,) = load(data, range(1), num_workers=num_workers)
    for max_fraction, message in [(0.01, "images cannot be read, more than"), (1.0, "100 images in a row cannot be")]:
        listed = CorruptImages(data.source, tmp_path / f"{max_fraction}.txt", max_fraction=max_fraction)
        with pytest.raises(DataError, match=message):
            listed.add(batch.corrupt) or check_readable(batch, data.source)
        assert (tmp_path / f"{max_fraction}.txt").read_text().count("\n") == len(listed) == len(data)


def test_open_loader__an_error_that_nobody_expected_ends_the_process() -> None:
    """Its loader processes do not hear SIGTERM, so waiting for them would take for ever."""
    program = """
from mcbeit.data import open_loader

class Broken(list):
    def __getitem__(self, index):
        raise RuntimeError("no such pixel")

list(open_loader(Broken([1, 2, 3]), num_workers=2))
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr.rstrip().endswith("RuntimeError: no such pixel")


def test_make_loader__reads_no_further_ahead_than_memory_allows(photos, monkeypatch) -> None:
    data = dataset(photos)
    sizes = {limit: [] for limit in (0, 3 * 4 * 960, 2**40)}
    for limit in sizes:
        monkeypatch.setattr(module, "PREFETCH_BYTES", limit)
        loader = make_loader(data, batch_keys(NUM_PHOTOS, 4, 0, range(1)), 4, num_workers=1, pin=False)
        sizes[limit] = loader.prefetch_factor
    assert list(sizes.values()) == [1, 3, 4]


# the config


def test_data_config__a_source_must_be_named() -> None:
    assert DataConfig(source="photos").required_source() == "photos"
    assert DataConfig(source=["a", "b"]).required_source() == ["a", "b"]
    with pytest.raises(DataError, match=r"data\.source is not set; say where .*, for example data\.source=~/photos"):
        DataConfig().required_source()


def test_auto_workers__is_as_configured_or_half_of_the_cores(monkeypatch) -> None:
    assert auto_workers(DataConfig(num_workers=0)) == 0
    assert auto_workers(DataConfig(num_workers=33)) == 33
    for cores, workers in [(1, 1), (1.5, 1), (2, 1), (5, 2), (64, 8)]:
        monkeypatch.setattr(module, "num_cores", lambda cores=cores: cores)
        assert auto_workers(DataConfig()) == workers


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"masks_per_image": 0}, "masks_per_image: input should be greater than or equal to 1 (found 0)"),
        ({"max_corrupt_fraction": 2}, "max_corrupt_fraction: input should be less than or equal to 1 (found 2)"),
        ({"num_workers": "all"}, "num_workers: input should be a valid integer"),
        ({"num_workers": -1}, "num_workers: input should be greater than or equal to 0"),
        ({"channels": 0}, "channels: input should be greater than or equal to 1 (found 0)"),
        ({"kind": "zip"}, "'imagefolder', 'list', 'tar' or 'parquet' (found 'zip')"),
    ],
)
def test_data_config__refuses(values: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(DataConfig, values)
    assert wanted in str(error.value)
