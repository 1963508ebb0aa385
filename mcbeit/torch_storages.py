"""Where the numbers of a torch checkpoint lie: in records of a zip archive, or in a stream behind the objects."""

import mmap
import struct
import sys
import zipfile
from typing import Any

import torch
from torch import Tensor

from mcbeit.errors import WeightsError

ALIGNMENT = 16  # bytes; storages that lie otherwise are copied


class ArchiveStorages:
    """The records of a zip archive as torch writes it: uncompressed, so they can stay where they are."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        try:
            with zipfile.ZipFile(data) as archive:  # type: ignore[call-overload]  # it seeks and reads only
                self.entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise WeightsError(f"its zip archive is damaged or cut off: {error}") from error
        roots = [name.removesuffix("data.pkl") for name in self.entries if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise WeightsError("it is a zip archive without 'data.pkl', so no checkpoint")
        self.root = roots[0]
        if f"{self.root}byteorder" in self.entries:
            order = bytes(data[slice(*self.place("byteorder"))]).decode("ascii", "replace")
            if order != sys.byteorder:
                raise WeightsError(f"it was written with the byte order {order!r}; this machine's is {sys.byteorder}")

    def place(self, name: str) -> tuple[int, int]:
        """Where the bytes of a record begin and end. Raises WeightsError if it is not there as torch writes it."""
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise WeightsError(f"its record '{name}' is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise WeightsError(f"its record '{name}' is compressed or encrypted, which torch never does")
        header = self.data[entry.header_offset : entry.header_offset + 30]
        name_size, extra_size = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        begin = entry.header_offset + 30 + name_size + extra_size
        if header[:4] != b"PK\3\4" or begin + entry.file_size > len(self.data):
            raise WeightsError(f"its record '{name}' is cut off")
        return begin, begin + entry.file_size

    def get(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """A storage as a flat tensor."""
        begin, end = self.place(f"data/{key}")
        if not 0 <= count * dtype.itemsize <= end - begin:
            raise WeightsError(f"its record 'data/{key}' has {end - begin} bytes, not {count} numbers of {dtype}")
        return flat_tensor(self.data, begin, dtype, count)


class StreamStorages:
    """Storages whose numbers come after the objects that use them: empty tensors, filled at the end."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes, self.tensors = num_bytes, dict[str, Tensor]()

    def get(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """A storage as a flat tensor, not yet filled."""
        if key not in self.tensors:
            self.num_bytes -= count * dtype.itemsize
            if count < 0 or self.num_bytes < 0:
                raise WeightsError(f"its storage '{key}' of {count} numbers would be longer than the file")
            self.tensors[key] = torch.empty(count, dtype=dtype)
        known = self.tensors[key]
        if known.dtype != dtype or known.numel() != count:
            raise WeightsError(f"its storage '{key}' has two lengths or types of numbers")
        return known

    def fill(self, data: mmap.mmap, keys: Any) -> None:
        """Read the storages, which lie one after another in the order of `keys`, each behind its length."""
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(self.tensors):
            raise WeightsError("its list of storages is not that of its tensors")
        for key in keys:
            tensor, length = self.tensors[key], int.from_bytes(data.read(8), "little")
            begin = data.tell()
            if length != tensor.numel() or begin + tensor.nbytes > len(data):
                raise WeightsError(f"its storage '{key}' is cut off or has another length")
            tensor.copy_(flat_tensor(data, begin, tensor.dtype, length))
            data.seek(begin + tensor.nbytes)


def flat_tensor(data: mmap.mmap, begin: int, dtype: torch.dtype, count: int) -> Tensor:
    """Numbers of a mapped file without copying them, unless they lie where no such number may."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if begin % ALIGNMENT:
        return torch.frombuffer(bytearray(data[begin : begin + count * dtype.itemsize]), dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=begin)
