"""Fashion-MNIST out of IDX files of a few images."""

import gzip
import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from machine import Machine
from PIL import Image

from mcbeit.errors import DataError
from mcbeit.prepare import fashion_mnist as module
from mcbeit.prepare import prepare
from mcbeit.prepare.fashion_mnist import CLASSES, parse_images, parse_labels, read_payload, write_split

SIZES = {"train": 20, "t10k": 10}


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def payloads() -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    files = {}
    for prefix, count in SIZES.items():
        files[f"{prefix}-images-idx3-ubyte"] = idx(generator.integers(256, size=(count, 28, 28), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte"] = idx((np.arange(count) * 3 % 10).astype(np.uint8))
    return files


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Tiny IDX files that count as the published ones."""
    made = payloads()
    monkeypatch.setattr(module, "PAYLOADS", {name: hashlib.sha256(data).hexdigest() for name, data in made.items()})
    return made


def test_prepare__from_the_debian_package(files: dict[str, bytes], machine: Machine, tmp_path: Path) -> None:
    folder = "usr/share/datasets/fashion-mnist"
    machine.add_apt()
    machine.stock_debian(module.PACKAGE, {f"{folder}/{name}.gz": gzip.compress(data) for name, data in files.items()})
    state, manifest = prepare("fashion-mnist", tmp_path / "out")
    assert state == "built"
    assert manifest.counts == {"train": dict.fromkeys(sorted(CLASSES), 2), "val": dict.fromkeys(sorted(CLASSES), 1)}
    assert [(source.registry, source.package, source.licence) for source in manifest.sources] == [
        ("Debian", "dataset-fashion-mnist", "MIT")
    ]
    assert set(manifest.sources[0].files) == {f"{folder}/{name}.gz" for name in files}
    assert "Debian package dataset-fashion-mnist 1.0-1" in (tmp_path / "out" / "ATTRIBUTION.md").read_text()
    assert prepare("fashion-mnist", tmp_path / "out", verify=True).state == "already there"


def test_prepare__sorting_by_file_name_gives_the_order_of_the_source(
    files: dict[str, bytes], machine: Machine, tmp_path: Path
) -> None:
    folder = "usr/share/datasets/fashion-mnist"
    machine.add_apt()
    machine.stock_debian(module.PACKAGE, {f"{folder}/{name}.gz": gzip.compress(data) for name, data in files.items()})
    prepare("fashion-mnist", tmp_path / "out")
    paths = sorted((tmp_path / "out" / "train").glob("*/*.png"), key=lambda path: path.name)
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(images, parse_images(files["train-images-idx3-ubyte"]))
    labels = [CLASSES.index(path.parent.name) for path in paths]
    np.testing.assert_array_equal(labels, parse_labels(files["train-labels-idx1-ubyte"]))


def test_prepare__without_apt_by_torchvision(
    files: dict[str, bytes], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(root: str, *, train: bool, download: bool) -> None:
        raw = Path(root, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for name, data in files.items():
            (raw / name).write_bytes(data)

    fake = SimpleNamespace(__version__="0.29", datasets=SimpleNamespace(FashionMNIST=download))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    manifest = prepare("fashion-mnist", tmp_path / "out").manifest
    assert (manifest.sources[0].registry, manifest.sources[0].version) == ("torchvision", "0.29")
    assert sum(manifest.counts["train"].values()) == 20


def test_prepare__without_apt_and_network(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, *, train: bool, download: bool) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    fake = SimpleNamespace(__version__="0.29", datasets=SimpleNamespace(FashionMNIST=download))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    with pytest.raises(
        DataError, match=r"cannot fetch Fashion-MNIST: .*Error downloading train-images.*\ncheck the net"
    ):
        prepare("fashion-mnist", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare__where_apt_fails_by_torchvision_or_with_both_reasons(
    files: dict[str, bytes], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(root: str, *, train: bool, download: bool) -> None:
        if broken:
            raise RuntimeError("Error downloading")
        raw = Path(root, "FashionMNIST", "raw")
        raw.mkdir(parents=True)
        for name, data in files.items():
            (raw / name).write_bytes(data)

    machine.add_apt()  # which knows no such package
    fake = SimpleNamespace(__version__="0.29", datasets=SimpleNamespace(FashionMNIST=download))
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    broken = True
    with pytest.raises(DataError, match=r"dataset-fashion-mnist(.|\n)*torchvision.datasets.FashionMNIST failed"):
        prepare("fashion-mnist", tmp_path / "out")
    broken = False
    assert prepare("fashion-mnist", tmp_path / "out").manifest.sources[0].registry == "torchvision"


def test_read_payload__refuses_half_a_file(tmp_path: Path) -> None:
    (tmp_path / "train.gz").write_bytes(gzip.compress(b"hello" * 99)[:-12])
    with pytest.raises(DataError, match=r"train\.gz is no whole gzip file \(.*\); the download is damaged"):
        read_payload(tmp_path / "train.gz", "00")


def test_read_payload__refuses_other_bytes(tmp_path: Path) -> None:
    (tmp_path / "train.gz").write_bytes(gzip.compress(b"hello"))
    assert read_payload(tmp_path / "train.gz", hashlib.sha256(b"hello").hexdigest()) == b"hello"
    with pytest.raises(DataError, match=r"train.gz is not the published Fashion-MNIST: sha256 2cf24"):
        read_payload(tmp_path / "train.gz", "00")


@pytest.mark.parametrize(
    "content", [b"", b"hello", idx(np.zeros(5, np.uint8)), idx(np.zeros((2, 3, 3), np.uint8))[:-1]]
)
def test_parse_images__refuses_what_is_no_idx_file(content: bytes) -> None:
    with pytest.raises(DataError, match="not a whole IDX file of uint8 with 3 axes"):
        parse_images(content)


def test_write_split__writes_empty_classes_too(tmp_path: Path) -> None:
    write_split(np.zeros((1, 28, 28), np.uint8), np.array([9], np.uint8), tmp_path / "train")
    assert {path.name for path in (tmp_path / "train").iterdir()} == set(CLASSES)
    assert [path.name for path in (tmp_path / "train" / "ankle-boot").iterdir()] == ["00000.png"]
