"""Files that cost far more than their size: thousands of parts beside a few pixels, and many passes over many pixels.

A pass over all pixels takes ten bytes of a JPEG, so 100 kB can keep a thread busy for minutes, and a thread cannot be
stopped. Pillow and libjpeg have no limits of these; here they are counted. The bounds are far above what cameras and
programs write.
"""

import re
import struct
from collections.abc import Iterator

from mcbeit.errors import ImageError

MAX_PARTS = 16_384  # segments, fill bytes and junk of a JPEG's header; chunks of a PNG
MAX_SCANS = 100  # passes of a JPEG; progressive ones have about ten
MAX_EXIF = 64  # blocks of a JPEG: Pillow appends each to a copy of those before it

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOI, _EOI, _SOS, _FIRST_WITH_LENGTH = 0xD8, 0xD9, 0xDA, 0xC0


def check_parts(kind: str, data: bytes) -> None:
    """Raise ImageError if a file of this kind has more parts than any honest one."""
    count = {"JPEG": _check_jpeg, "PNG": _check_png}.get(kind)
    if count is not None:
        count(data)


def _check_jpeg(data: bytes) -> None:
    parts = scans = exif = 0
    for marker, start, skipped in _segments(data):
        parts += 1 + (0 if scans else skipped)
        scans += marker == _SOS
        exif += data.startswith(b"Exif\0\0", start)
        if parts > MAX_PARTS or exif > MAX_EXIF:
            raise ImageError("the JPEG header has far too many parts")
        if scans > MAX_SCANS:
            raise ImageError(f"the JPEG data has more than {MAX_SCANS} scans")
        if marker == _SOS and scans + data.count(b"\xff\xda", start) <= MAX_SCANS:
            return


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, where its content starts, and the bytes before it that belong to none, as libjpeg goes through them."""
    at, has_scans = 2, False
    while (found := _MARKER.search(data, at)) is not None:
        marker, skipped, at = data[found.end() - 1], found.start() - at, found.end()
        if marker == _EOI and has_scans:
            return
        has_length = marker >= _FIRST_WITH_LENGTH and marker not in (_SOI, _EOI)
        yield marker, at + 2, skipped
        has_scans |= marker == _SOS
        if has_length and at + 2 <= len(data):
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _check_png(data: bytes) -> None:
    at, parts = 8, 0
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        parts += 1
        if parts > MAX_PARTS:
            raise ImageError("the PNG file has far too many chunks")
        at += 12 + struct.unpack_from(">I", data, at)[0]
