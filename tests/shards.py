"""Shards made on the spot: tar and parquet files of given images."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from images import encode, photo

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pictures(count: int) -> dict[str, bytes]:
    """Small PNGs, all different, named so that their order is that of their names."""
    return {f"{i:03}.png": encode(photo(20, 24, seed=i)) for i in range(count)}


def write_tar(path: Path, members: Mapping[str, bytes], **options: Any) -> Path:
    """A tar file of these members, in this order; options go to `tarfile.open`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def header_of(path: Path, name: str) -> int:
    """Where the header of a member begins."""
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    *,
    paths: Sequence[str | None] | None = None,
    labels: Sequence[Any] | None = None,
    class_names: Sequence[str] | None = None,
    rows: int = 4,
    **options: Any,
) -> Path:
    """A parquet file as Hugging Face's `datasets` writes them; `rows` per row group, options go to pyarrow."""
    cells = [{"bytes": data, "path": name} for data, name in zip(images, paths or [None] * len(images), strict=True)]
    columns: dict[str, Any] = {"image": pa.array(cells, type=IMAGE)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if class_names is not None:
        features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows, **options)
    return path


def damage(path: Path, start: int, size: int = 64) -> None:
    """Overwrite a part of a file with noise."""
    data = bytearray(path.read_bytes())
    data[start : start + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)


def cut(path: Path, size: int) -> None:
    """Leave the first bytes of a file only."""
    path.write_bytes(path.read_bytes()[:size])
