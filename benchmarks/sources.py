"""Images per second of the training loader by where the images lie, as ratios to a folder of the same files.

    python benchmarks/sources.py [--count 1000] [--workers 0] [--rounds 3] [--folder TMP]

All kinds hold the same made JPEGs of 500 x 375, read in the shuffled order of an epoch and rendered as the views of a
pretraining run. `read` is the bytes alone; `load` is what training waits for. The N-channel images are 256 x 256 x 6
of uint16, beside a folder of PNGs of 256 x 256. Files are in the page cache; on other storage, kinds with fewer and
longer reads gain. Parquet keeps one row group here, as if the set were far larger than what it keeps. The kinds take
turns.
"""

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
from input import CROP, VIEWS, made_jpegs
from PIL import Image

from mcbeit.data import ViewDataset, batch_keys, epoch_order, make_loader
from mcbeit.masking import MaskConfig
from mcbeit.sources import ImageSource, open_source, parquet

BATCH = 50
CHANNELS = 6


def write_folder(folder: Path, files: Iterable[bytes], suffix: str) -> None:
    """One file per image."""
    folder.mkdir()
    for i, data in enumerate(files):
        (folder / f"{i:06}{suffix}").write_bytes(data)


def write_tar(path: Path, files: Iterable[bytes]) -> None:
    """One shard."""
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(files):
            member = tarfile.TarInfo(f"{i:06}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, files: list[bytes], rows: int) -> None:
    """One file, compressed with snappy as is usual."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": data, "path": None} for data in files], type=kind)
    pq.write_table(pa.table({"image": image}), path, row_group_size=rows)


def make_sources(folder: Path, count: int) -> dict[str, ImageSource]:
    """The same images in every kind, and N-channel ones; the two folders are what the others are compared with."""
    files = made_jpegs(count, 500, 375)
    write_folder(folder / "jpg", files, ".jpg")
    write_tar(folder / "images.tar", files)
    found = {"folder": open_source(str(folder / "jpg")), "tar": open_source(str(folder / "images.tar"))}
    for rows in (10, 30, 100):
        write_parquet(folder / f"{rows}.parquet", files, rows)
        found[f"parquet, {rows} rows per group"] = open_source(str(folder / f"{rows}.parquet"))
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 65535, (256, 256, CHANNELS), dtype=np.uint16) for _ in range(min(count, 200))]
    write_folder(folder / "png", (_png(image) for image in planes), ".png")
    write_folder(folder / "npy", (_packed(np.save, image) for image in planes), ".npy")
    tiff = {"photometric": "minisblack", "planarconfig": "contig"}
    write_folder(folder / "tif", (_packed(tifffile.imwrite, image, **tiff) for image in planes), ".tif")
    found["folder of PNG"] = open_source(str(folder / "png"))
    found["npy, 6 channels"] = open_source(str(folder / "npy"), channels=CHANNELS)
    found["TIFF, 6 channels"] = open_source(str(folder / "tif"), channels=CHANNELS)
    return found


def _png(planes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((planes[:, :, :3] >> 8).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _packed(save: object, planes: np.ndarray, **options: str) -> bytes:
    buffer = io.BytesIO()
    save(buffer, planes, **options)  # type: ignore[operator]
    return buffer.getvalue()


def read_rate(source: ImageSource, epoch: int) -> float:
    """Images per second of the bytes alone."""
    order = epoch_order(len(source), 0, epoch)
    start = time.perf_counter()
    for index in order:
        source.read(int(index))
    return len(order) / (time.perf_counter() - start)


def load_rate(source: ImageSource, epoch: int, num_workers: int) -> float:
    """Images per second of batches."""
    mask = MaskConfig(kind="random", ratio=0.75)
    dataset = ViewDataset(source, seed=0, crop=CROP, views=VIEWS, grid=(14, 14), mask=mask)
    steps = len(source) // BATCH
    keys = batch_keys(len(source), BATCH, 0, range(epoch * steps, (epoch + 1) * steps))
    start = time.perf_counter()
    for _ in make_loader(dataset, keys, BATCH, num_workers=num_workers, pin=False):
        pass
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Print both rates of each kind, and the ratio to its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to put the images for the time; default: the temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    parquet.CACHE_BYTES = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        sources = make_sources(Path(folder), options.count)
        reads: dict[str, list[float]] = {name: [] for name in sources}
        loads: dict[str, list[float]] = {name: [] for name in sources}
        for turn in range(options.rounds + 1):
            for name, source in sources.items():
                read, load = read_rate(source, turn), load_rate(source, turn, options.workers)
                if turn:
                    reads[name].append(read)
                    loads[name].append(load)
    print(f"{options.count} images, {options.workers} loader processes, medians of {options.rounds} rounds")
    base = ""
    for name in sources:
        base = name if name.startswith("folder") else base
        ratio = median(a / b for a, b in zip(loads[name], loads[base], strict=True))
        print(f"{name:28} read {median(reads[name]):8.0f}/s  load {median(loads[name]):6.0f}/s  {ratio:.2f} of {base}")


if __name__ == "__main__":
    main()
