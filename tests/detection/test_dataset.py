import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cocos import annotation, content, write_coco, write_split
from images import encode, photo

from mcbeit.corrupt import CorruptImages
from mcbeit.data import Batch, Key, batch_keys, make_loader, sample_generator
from mcbeit.detection.coco import CocoSource, open_coco, open_coco_splits
from mcbeit.detection.dataset import DetectionDataset, load_whole
from mcbeit.detection.large_scale_jitter import JitterConfig, draw_placing
from mcbeit.detection.rle import decode
from mcbeit.image_files import decode as decode_image

pytestmark = [
    # Loader processes are what is tested here, on machines with few cores and with other threads running
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def coco(tmp_path: Path) -> CocoSource:
    return open_coco_splits(write_coco(tmp_path)).train


def dataset(source: CocoSource, *, seed: int = 0, num_dice: int = 5, **jitter: Any) -> DetectionDataset:
    return DetectionDataset(source, seed=seed, size=32, jitter=JitterConfig(**jitter), num_dice=num_dice)


def same(first: Batch, second: Batch) -> bool:
    pairs = [(first.views[0], second.views[0]), (first.dice, second.dice)]
    for one, other in zip(first.targets, second.targets, strict=True):
        pairs += [(value, other[name]) for name, value in one.items()]
    return all(torch.equal(a, b) for a, b in pairs)


def test_dataset__image_boxes_and_masks_move_together(coco: CocoSource) -> None:
    data = dataset(coco)
    for epoch in range(20):
        sample, rng = data[Key(epoch, 1)], sample_generator(0, Key(epoch, 1))
        placing = draw_placing(30, 40, 32, JitterConfig(), rng)
        marks = coco.annotations(1)
        masks = placing.masks(marks.segmentations, 30, 40)
        seen = [i for i in range(2) if masks[i].any()]
        assert torch.equal(sample.views[0], placing.image(decode_image(coco.read(1))))
        assert torch.equal(sample.targets["masks"], torch.from_numpy(masks[seen]))
        assert sample.targets["labels"].tolist() == [int(marks.labels[i]) for i in seen]
        for box, mask in zip(sample.targets["boxes"].int().tolist(), sample.targets["masks"], strict=True):
            left, top, right, bottom = box
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0
            assert mask[top, left:right].any()
            assert mask[top:bottom, right - 1].any()


def test_dataset__objects_outside_of_the_square_are_left_out(coco: CocoSource) -> None:
    counts = {len(dataset(coco, scale=(2.0, 2.0))[Key(epoch, 1)].targets["labels"]) for epoch in range(40)}
    assert counts == {1, 2}
    (sample,) = [dataset(coco, scale=(1.0, 1.0), flip=0)[Key(0, 1)]]
    assert {name: (tuple(value.shape), value.dtype) for name, value in sample.targets.items()} == {
        "boxes": ((2, 4), torch.float32),
        "labels": ((2,), torch.int64),
        "masks": ((2, 32, 32), torch.uint8),
    }


def test_dataset__images_without_objects_have_empty_targets(tmp_path: Path) -> None:
    val = open_coco_splits(write_coco(tmp_path)).val
    targets = dataset(val)[Key(0, 0)].targets
    assert [tuple(targets[name].shape) for name in ("boxes", "labels", "masks")] == [(0, 4), (0,), (0, 32, 32)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset__a_sample_depends_on_its_key_alone(num_workers: int, coco: CocoSource) -> None:
    data = dataset(coco)
    batches = make_loader(data, batch_keys(2, 2, 0, range(4)), 2, num_workers=num_workers, pin=False)
    again = make_loader(dataset(coco), batch_keys(2, 2, 0, range(4)), 2, num_workers=0, pin=False)
    found = list(batches)
    assert all(same(batch, other) for batch, other in zip(found, again, strict=True))
    assert not same(found[0], found[1])
    assert found[0].dice.shape == (2, 5)
    assert data.sample_bytes == 32 * 32 * (3 + 8)
    assert not torch.equal(dataset(coco, seed=1)[Key(0, 1)].views[0], data[Key(0, 1)].views[0])


def test_dataset__what_cannot_be_used_is_replaced_and_reported(tmp_path: Path) -> None:
    """A broken file, one of another size than stated, and a run-length code that is damaged."""
    things = [annotation(i, i, 3, (1, 1, 6, 6)) for i in range(1, 6)]
    things[2]["segmentation"] = {"size": [20, 20], "counts": "zzz"}
    annotations, images = write_split(tmp_path, "train", content(dict.fromkeys(range(1, 6), (20, 20)), things))
    (images / "000000000001.png").write_bytes(b"nothing")
    (images / "000000000002.png").write_bytes(encode(photo(20, 24, seed=0)))
    source = open_coco(str(annotations), str(images))
    data, reasons = dataset(source), {}
    for image in range(5):
        sample = data[Key(0, image)]
        assert sample.image in (3, 4)
        assert len(sample.targets["labels"]) in (0, 1)
        reasons |= {bad.image: bad.reason for bad in sample.corrupt}
    assert reasons == {
        0: "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        1: "upright, the image is 24 wide and 20 high; its annotations are for 20 and 20",
        2: "its annotations cannot be used: a run-length code is damaged: it does not count the 400 pixels of its "
        "image",
    }
    listed = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=0.9)
    listed.add(data[Key(0, 1)].corrupt)
    assert "its annotations are for 20 and 20" in (tmp_path / "corrupt.txt").read_text()


def test_load_whole__is_padded_at_the_right_or_below(coco: CocoSource) -> None:
    landscape, portrait = (load_whole(coco, index, 64) for index in (1, 0))
    assert landscape.shape == portrait.shape == (3, 64, 64)
    assert (landscape[:, 48:] == 128).all()
    assert (portrait[:, :, 26:] == 128).all()
    assert (landscape[:, :48].float().std(dim=(1, 2)) > 5).all()


def test_dataset__masks_are_those_of_the_annotations_where_nothing_is_resized(tmp_path: Path) -> None:
    polygon = [[3.2, 4.1, 27.9, 9.5, 20.3, 25.6, 5.5, 20.0]]
    values = content({1: (32, 32)}, [annotation(1, 1, 3, (0, 0, 1, 1), segmentation=polygon)])
    source = open_coco(*map(str, write_split(tmp_path, "train", values)))
    sample = dataset(source, scale=(1.0, 1.0), flip=0)[Key(0, 0)]
    assert np.array_equal(sample.targets["masks"][0].numpy() > 0, decode(polygon, 32, 32))
    assert json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text()) == values
