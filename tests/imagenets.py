"""A tiny ImageNet, in every layout that people keep the large one in. Images are bytes that tell what they are."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat
from shards import write_parquet, write_tar

WNIDS = ("n01440764", "n01443537", "n02084071")  # sorted: the order of the classes
DEVKIT_ORDER = ("n02084071", "n01440764", "n01443537")  # numbers 1, 2 and 3 of the devkit: another one
TRAIN = {wnid: [f"train {wnid} {i}".encode() for i in range(2 + n)] for n, wnid in enumerate(WNIDS)}
VAL = tuple((f"ILSVRC2012_val_{n:08}", wnid) for n, wnid in enumerate([*WNIDS[::-1], WNIDS[0], WNIDS[2]], 1))


def val_bytes(stem: str, wnid: str) -> bytes:
    return f"val {wnid} {stem}".encode()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def train_files() -> dict[str, bytes]:
    return {f"{wnid}/{wnid}_{i}.JPEG": data for wnid, images in TRAIN.items() for i, data in enumerate(images)}


def val_files(*, by_class: bool = False) -> dict[str, bytes]:
    return {f"{wnid}/{stem}.JPEG" if by_class else f"{stem}.JPEG": val_bytes(stem, wnid) for stem, wnid in VAL}


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


# as image-net.org and Kaggle give it


def train_tar(order: tuple[str, ...] = WNIDS) -> dict[str, bytes]:
    """The members of the tar file of tar files."""
    members = {}
    for wnid in order:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i, data in enumerate(TRAIN[wnid]):
                member = tarfile.TarInfo(f"{wnid}_{i}.JPEG")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        members[f"{wnid}.tar"] = buffer.getvalue()
    return members


def meta_mat() -> bytes:
    """Three leaves and, as in the true file, what is above them: numbered after them, with children."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    fields.append("num_train_images")
    synsets = np.empty((4, 1), dtype=[(name, object) for name in fields])
    for i, wnid in enumerate(DEVKIT_ORDER):
        synsets[i, 0] = (i + 1, wnid, "tench, Tinca tinca", "a fish", 0, np.empty((1, 0)), 0, 1300)
    synsets[3, 0] = (4, "n00001740", "entity", "that which is", 2, np.array([[1, 2]]), 18, 0)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def devkit(numbers: list[int] | None = None) -> dict[str, bytes]:
    found = numbers or [DEVKIT_ORDER.index(wnid) + 1 for _, wnid in VAL]
    return {
        "ILSVRC2012_devkit_t12/readme.txt": b"",
        "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{n}\n" for n in found).encode(),
    }


def solution() -> bytes:
    """Kaggle's, in no order, with one or two boxes each."""
    rows = [f"{stem},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for stem, wnid in VAL]
    return ("ImageId,PredictionString\n" + "".join(rows[::-1])).encode()


def write_official(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_tar(root / "ILSVRC2012_img_train.tar", train_tar(DEVKIT_ORDER))
    write_tar(root / "ILSVRC2012_img_val.tar", dict(reversed(val_files().items())))
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in devkit().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root


def write_mixed(root: Path) -> Path:
    """All of it unpacked, `val` not sorted into folders."""
    return write_files(root, below("train", train_files()) | below("val", val_files()) | devkit())


def write_kaggle(root: Path) -> Path:
    images = "ILSVRC/Data/CLS-LOC"
    files = below(f"{images}/train", train_files()) | below(f"{images}/val", val_files())
    return write_files(root, files | below(f"{images}/test", {"a.JPEG": b""}) | {"LOC_val_solution.csv": solution()})


# as others pass it on


def write_folders(root: Path, val: str = "val") -> Path:
    return write_files(root, below("train", train_files()) | below(val, val_files(by_class=True)))


def map_files() -> dict[str, bytes]:
    train = [f"{path}\t{WNIDS.index(path.partition('/')[0])}\n" for path in train_files()]
    val = [f"{stem}.JPEG\t{WNIDS.index(wnid)}\n" for stem, wnid in VAL]
    return {"train_map.txt": "".join(train).encode(), "val_map.txt": "".join(val).encode()}


def write_lists(root: Path) -> Path:
    return write_files(root, below("train", train_files()) | below("val", val_files()) | map_files())


def write_zips(root: Path) -> Path:
    """One deflated, with its folder inside; one stored, without."""
    write_files(root, map_files())
    for name, files, how in (
        ("train.zip", below("train", train_files()), zipfile.ZIP_DEFLATED),
        ("val.zip", val_files(), zipfile.ZIP_STORED),
    ):
        with zipfile.ZipFile(root / name, "w", how) as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    return root


def samples(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of WebDataset: images and their classes."""
    found = {}
    for i, data in enumerate(files.values()):
        label = WNIDS.index(data.decode().split()[1])
        found |= {
            f"{i:04}.jpg": data,
            f"{i:04}.cls": str(label).encode(),
            f"{i:04}.json": json.dumps({"a": i}).encode(),
        }
    return found


def write_webdataset(root: Path) -> Path:
    write_tar(root / "imagenet1k-train-0000.tar", samples(dict(list(train_files().items())[::2])))
    write_tar(root / "imagenet1k-train-0001.tar", samples(dict(list(train_files().items())[1::2])))
    write_tar(root / "imagenet1k-validation-00.tar", samples(val_files()))
    return write_files(root, {"_info.json": b"{}"})


def write_shard_folders(root: Path) -> Path:
    write_tar(root / "train" / "000.tar", samples(train_files()))
    write_tar(root / "validation" / "000.tar", samples(val_files()))
    return root


def write_parquets(root: Path, folder: str = "data") -> Path:
    for split, files in (("train", train_files()), ("validation", val_files())):
        images = list(files.values())
        labels = [WNIDS.index(data.decode().split()[1]) for data in images]
        path = root / folder / f"{split}-00000-of-00001.parquet"
        write_parquet(path, images, labels=labels, class_names=["tench", "goldfish", "dog"])
    hidden = root / folder / "test-00000-of-00001.parquet"  # whose classes are secret
    write_parquet(hidden, [b"test"], labels=[-1], class_names=["tench", "goldfish", "dog"])
    return root
