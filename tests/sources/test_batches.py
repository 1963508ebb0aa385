"""The same images give the same batches, wherever they lie; in any process, and from any step on."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from shards import cut, header_of, pictures, write_parquet, write_tar

from mcbeit.augment import CropConfig, View
from mcbeit.corrupt import CorruptImages
from mcbeit.data import Batch, ViewDataset, batch_keys, collate, make_loader
from mcbeit.errors import DataError
from mcbeit.masking import MaskConfig
from mcbeit.sources import ImageSource, open_source

COUNT, BATCH, STEPS = 22, 4, 9  # the fourth step is the last but one of the first epoch
KINDS = ("folder", "imagefolder", "list", "tar", "parquet", "url", "url-tar", "joined")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Iterator[dict[str, str | list[str]]]:
    """The same labelled images in the same order, in each kind of source. One of them is no image."""
    root = tmp_path_factory.mktemp("places")
    images = {f"{'ab'[i >= 9]}/{name}": data for i, (name, data) in enumerate(pictures(COUNT).items())}
    images["b/015.png"] = b"not an image"
    labels = [int(name.startswith("b")) for name in images]
    for name, data in images.items():
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(data)
    (root / "list.txt").write_text(
        "".join(f"folder/{name} {label}\n" for name, label in zip(images, labels, strict=True))
    )
    for shard in range(3):
        members: dict[str, bytes] = {}
        for name, label in list(zip(images, labels, strict=True))[8 * shard : 8 * shard + 8]:
            members |= {name: images[name], name.replace(".png", ".cls"): str(label).encode()}
        write_tar(root / "tar" / f"{shard}.tar", members)
    for part in range(2):
        chosen = slice(13 * part, 13 * part + 13)
        path = root / "parquet" / f"train-{part:05}-of-00002.parquet"
        write_parquet(path, list(images.values())[chosen], labels=labels[chosen], class_names=["a", "b"])
    memory = fsspec.filesystem("memory")
    memory.put(str(root / "folder"), "/places/folder", recursive=True)
    memory.put(str(root / "tar"), "/places/tar", recursive=True)
    yield {
        "folder": str(root / "folder"),
        "imagefolder": str(root / "folder"),
        "list": str(root / "list.txt"),
        "tar": str(root / "tar" / "{0..2}.tar"),
        "parquet": str(root / "parquet"),
        "url": "memory://places/folder",
        "url-tar": "memory://places/tar/*.tar",
        "joined": [str(root / "tar" / "0.tar"), "memory://places/tar/1.tar", str(root / "tar" / "2.tar")],
    }
    memory.store.clear()


def open_kind(places: dict[str, str | list[str]], kind: str) -> ImageSource:
    return open_source(places[kind], folders="imagefolder" if kind in ("imagefolder", "url") else "folder")


def dataset(source: ImageSource) -> ViewDataset:
    views = (View(16, "bicubic"), View(8, "lanczos"))
    mask = MaskConfig(kind="random", ratio=0.5)
    return ViewDataset(source, seed=3, crop=CropConfig(), views=views, grid=(4, 4), mask=mask)


def batches(source: ImageSource, steps: range, num_workers: int = 0) -> list[Batch]:
    keys = batch_keys(len(source), BATCH, 3, steps)
    return list(make_loader(dataset(source), keys, BATCH, num_workers=num_workers, pin=False))


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.images.tolist() == other.images.tolist()
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
        assert torch.equal(one.masks, other.masks)
        assert one.corrupt == other.corrupt


@pytest.fixture(scope="module")
def wanted(places) -> list[Batch]:
    """Of the folder."""
    found = batches(open_source(places["folder"]), range(STEPS))
    assert sum(len(batch.corrupt) for batch in found) >= 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_batches__are_those_of_the_folder(kind: str, places, wanted) -> None:
    source = open_kind(places, kind)
    assert_same(batches(source, range(STEPS)), wanted)
    if kind != "folder":
        assert [source.classes[i] for i in source.labels] in (["a"] * 9 + ["b"] * 13, ["0"] * 9 + ["1"] * 13)


@pytest.mark.parametrize("kind", KINDS)
def test_batches__from_a_step_in_mid_epoch_go_on_as_before(kind: str, places, wanted) -> None:
    source = open_kind(places, kind)
    assert_same(batches(source, range(3, STEPS)), wanted[3:])


@pytest.mark.parametrize("kind", ["tar", "parquet", "url-tar"])
def test_batches__do_not_depend_on_loader_processes(kind: str, places, wanted) -> None:
    source = open_kind(places, kind)
    source.read(0)  # what this process has opened is no harm to the others
    assert_same(batches(source, range(STEPS), num_workers=2), wanted)


@pytest.mark.parametrize("kind", ["tar", "parquet", "url"])
def test_batches__of_ranks_make_up_the_whole_one(kind: str, places, wanted) -> None:
    samples = dataset(open_kind(places, kind))
    for whole, keys in zip(wanted, batch_keys(COUNT, BATCH, 3, range(STEPS)), strict=True):
        ranks = [collate([samples[key] for key in keys[rank :: BATCH // 2]]) for rank in range(2)]
        for rank, part in enumerate(ranks):
            assert torch.equal(part.views[0], whole.views[0][rank :: BATCH // 2])
            assert torch.equal(part.masks, whole.masks[rank :: BATCH // 2])


# damaged shards, as bad images


def damaged_source(folder: Path) -> ImageSource:
    """Two shards of ten images, of which the second has lost seven; one image of the first is none."""
    for i in range(2):
        write_tar(folder / f"{i}.tar", {**pictures(10), **({"005.png": b"no image"} if i == 0 else {})})
    cut(folder / "1.tar", header_of(folder / "1.tar", "003.png"))
    return open_source(str(folder))


def test_corrupt_images__counts_and_lists_damaged_shards(tmp_path) -> None:
    source = damaged_source(tmp_path)
    corrupt = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=0.5)
    assert len(corrupt) == 7
    for batch in batches(source, range(6)):
        corrupt.add(batch.corrupt)
    assert len(corrupt) == 8
    shard, image = (tmp_path / "corrupt.txt").read_text().splitlines()
    assert shard.startswith(f"{tmp_path / '1.tar'}\tit ends at byte")
    assert image.startswith(f"{tmp_path / '0.tar'}:005.png\t")
    again = CorruptImages(source, tmp_path / "corrupt.txt", max_fraction=0.5)
    assert len(again) == 8
    assert len((tmp_path / "corrupt.txt").read_text().splitlines()) == 2


def test_corrupt_images__too_much_damage_stops_the_run_before_it_begins(tmp_path) -> None:
    with pytest.raises(DataError, match=r"about 7 of 20 images cannot be read.*max_corrupt_fraction=0\.34"):
        CorruptImages(damaged_source(tmp_path), tmp_path / "corrupt.txt", max_fraction=0.34)
    CorruptImages(damaged_source(tmp_path), tmp_path / "corrupt.txt", max_fraction=0.35)
