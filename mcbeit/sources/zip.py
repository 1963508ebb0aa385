"""Images in a zip file, read straight out of it in any order."""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcbeit.errors import DataError
from mcbeit.image_files import COLOURS
from mcbeit.sources import location
from mcbeit.sources.listfile import read_list
from mcbeit.sources.location import Stamp
from mcbeit.sources.source import Described, Labels, PackedNames

HEADER = struct.Struct("<4s22xHH")  # of a member: the magic, and the lengths of its name and of what follows that
MAGIC = b"PK\3\4"
ENCRYPTED = 1  # the bit of a member's flags


class ZipSource(Described):
    """Members of one zip file, stored or deflated; 33 bytes each, and their names. Holds no open file."""

    def __init__(
        self,
        path: str,
        stamp: Stamp,
        members: Sequence[zipfile.ZipInfo],
        labels: Sequence[int] | Labels | None = None,
        classes: Sequence[str] = (),
        channels: int = COLOURS,
    ) -> None:
        numbers = None if labels is None else np.asarray(labels, dtype=np.int64)
        super().__init__(labels=numbers, classes=classes, channels=channels)
        self.path, self.stamp = path, stamp
        self._names = PackedNames(member.filename for member in members)
        self._starts = np.array([member.header_offset for member in members], dtype=np.int64)
        self._packed = np.array([member.compress_size for member in members], dtype=np.int64)
        self._sizes = np.array([member.file_size for member in members], dtype=np.int64)
        self._checks = np.array([member.CRC for member in members], dtype=np.uint32)
        self._is_deflated = np.array([member.compress_type == zipfile.ZIP_DEFLATED for member in members], dtype=bool)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The zip file, a colon, and the path in it."""
        return f"{self.path}:{self._names[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of the member. Raises OSError also if they are not those that were packed."""
        start = int(self._starts[index])
        magic, *lengths = HEADER.unpack(location.read_range(self.path, self.stamp, start, HEADER.size))
        if magic != MAGIC:
            raise OSError(f"'{self.path}' has no member at byte {start}")
        packed = location.read_range(
            self.path, self.stamp, start + HEADER.size + sum(lengths), int(self._packed[index])
        )
        data = _inflate(packed, int(self._sizes[index])) if self._is_deflated[index] else packed
        if zlib.crc32(data) != self._checks[index]:
            raise OSError(f"'{self.name(index)}' is corrupt: its checksum is another one")
        return data

    def summary(self) -> dict[str, Any]:
        """By the name of the file and those in it; content is not looked at."""
        names = os.fsencode(location.base_name(self.path)) + b"\0" + self._names.hashed()
        return {"images": len(self), "names_sha256": hashlib.sha256(names).hexdigest()}


def open_zip_list(list_path: str, zip_path: str, *, channels: int = COLOURS) -> ZipSource:
    """The images of a zip file that a list file names: the official `train_map.txt` and `train.zip`.

    Paths are those in the zip file, or below a folder in it that is called as it: `train/`. Raises DataError if either
    cannot be read, an image is missing, or one is packed by other means than storing and deflating.
    """
    listed, stamp, members = read_list(list_path), *_members(zip_path)
    stem = location.base_name(zip_path).removesuffix(".zip")
    found = [members.get(path) or members.get(f"{stem}/{path}") for path in listed.paths]
    missing = [path for path, member in zip(listed.paths, found, strict=True) if member is None]
    if missing:
        raise DataError(
            f"'{list_path}' does not match '{zip_path}': {len(missing)} of {len(found)} images are not in it, the "
            f"first is '{missing[0]:.200}'"
        )
    there = [member for member in found if member is not None]
    for member in there:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & ENCRYPTED:
            raise DataError(f"'{zip_path}:{member.filename}' is encrypted or packed in an unusual way; pack it again")
    return ZipSource(zip_path, stamp, there, listed.labels, listed.classes, channels)


def _members(path: str) -> tuple[Stamp, dict[str, zipfile.ZipInfo]]:
    """What the directory at the end of a zip file says, by path."""
    try:
        stamp = location.stamp_of(path)
        with location.open_file(path) as file, zipfile.ZipFile(file) as archive:
            return stamp, {member.filename: member for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"the zip file '{path}' cannot be read: {error}; is its download complete?") from error


def _inflate(packed: bytes, size: int) -> bytes:
    """At most `size` bytes, and one more if there are any."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error as error:
        raise OSError(f"a member of a zip file is corrupt: {error}") from error
