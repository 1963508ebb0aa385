"""Fashion-MNIST as folders: 60 000 train and 10 000 test images of 28 x 28 grey pixels in 10 balanced classes.

Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv 1708.07747; MIT licence, Zalando SE.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mcbeit.errors import DataError
from mcbeit.prepare.folder import Built, DataSet
from mcbeit.prepare.packages import Package, debian_package, has_apt
from mcbeit.prepare.progress import say, track

PACKAGE = "dataset-fashion-mnist"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
PREFIXES = {"train": "train", "val": "t10k"}
# sha256 of the unpacked IDX files: every mirror packs them anew
PAYLOADS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
ATTRIBUTION = """# Fashion-MNIST

Source: {package}.
Licence: MIT (Expat), copyright 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist
Changes: each image was written as a PNG file without loss; the order of the source is in the file names.
"""


def build(tree: Path, workspace: Path) -> Built:
    """Write both splits under `tree`."""
    package, pattern = _fetch(workspace)
    files = {name: package.file(pattern.format(name)) for name in PAYLOADS}
    payloads = {name: read_payload(path, PAYLOADS[name]) for name, path in files.items()}
    for split, prefix in PREFIXES.items():
        images = parse_images(payloads[f"{prefix}-images-idx3-ubyte"])
        labels = parse_labels(payloads[f"{prefix}-labels-idx1-ubyte"])
        write_split(images, labels, tree / split)
    return Built([package.source("MIT", list(files.values()))], ATTRIBUTION.format(package=package))


def read_payload(path: Path, expected: str) -> bytes:
    """The IDX bytes of a file, gzipped or not; raises DataError unless their sha256 is the expected one."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path.name} is no whole gzip file ({error}); the download is damaged, try again"
            ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path.name} is not the published Fashion-MNIST: sha256 {found}, expected {expected}\n"
            "the download is damaged or was changed on its way; try again"
        )
    return content


def parse_images(content: bytes) -> UInt8[np.ndarray, "image height width"]:
    """The pixels of an idx3-ubyte file."""
    return _parse_idx(content, num_axes=3)


def parse_labels(content: bytes) -> UInt8[np.ndarray, " image"]:
    """The class numbers of an idx1-ubyte file."""
    return _parse_idx(content, num_axes=1)


def write_split(
    images: UInt8[np.ndarray, "image height width"], labels: UInt8[np.ndarray, " image"], folder: Path
) -> None:
    """Write `CLASS/INDEX.png`; sorting the file names gives back the order of the source."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    pairs = zip(images, labels, strict=True)
    for index, (image, label) in enumerate(track(pairs, label=f"writing {folder.name}", total=len(images))):
        Image.fromarray(image).save(folder / CLASSES[label] / f"{index:05d}.png")


def _parse_idx(content: bytes, *, num_axes: int) -> UInt8[np.ndarray, "..."]:
    """IDX: two zero bytes, the type (8 = uint8), the number of axes, their sizes as big-endian uint32, the data."""
    header = 4 + 4 * num_axes
    if content[:4] == bytes((0, 0, 8, num_axes)) and len(content) >= header:
        shape = np.frombuffer(content[4:header], dtype=">u4").astype(int)
        if len(content) == header + shape.prod():
            return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
    raise DataError(
        f"not a whole IDX file of uint8 with {num_axes} axes: {len(content)} bytes that start with "
        f"'{content[:4].hex()}', expected '{bytes((0, 0, 8, num_axes)).hex()}'"
    )


def _fetch(workspace: Path) -> tuple[Package, str]:
    """The package, and where in it each file lies."""
    problem = None
    if has_apt():
        try:
            return debian_package(PACKAGE, workspace), "usr/share/datasets/fashion-mnist/{}.gz"
        except DataError as error:
            problem = error
    try:
        return _download(workspace), "FashionMNIST/raw/{}"
    except DataError as error:
        raise (DataError(f"{problem}\n{error}") if problem else error) from error


def _download(workspace: Path) -> Package:
    """Where apt does not help: the mirrors that torchvision knows."""
    import torchvision  # heavy, and only here

    say("fetching Fashion-MNIST by torchvision")
    try:
        torchvision.datasets.FashionMNIST(str(workspace), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cannot fetch Fashion-MNIST: torchvision.datasets.FashionMNIST failed: {error}\n"
            "check the network and try again"
        ) from error
    return Package("torchvision", "FashionMNIST", torchvision.__version__, workspace)


FASHION_MNIST = DataSet(name="fashion-mnist", builder_version=1, seed=0, build=build)
