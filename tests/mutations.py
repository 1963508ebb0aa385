"""Images that went wrong: valid files of seven formats, changed by chance. A number says which: make it again."""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from images import encode, exif, photo, png_chunk, with_alpha
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # the last is never allowed
MAGIC: Mapping[str, bytes] = {
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\0",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "WEBP": b"RIFF\0\1\0\0WEBPVP8X",
    "GIF": b"GIF89a",
    "BMP": b"BM",
    "TIFF": b"II*\0\x08\0\0\0",
    "AVIF": b"\0\0\0\x20ftypavif",
}
TELLING = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER_BYTES = {"JPEG": 700, "PNG": 60, "WEBP": 64, "GIF": 40, "BMP": 60, "TIFF": 300, "AVIF": 400}
MARKER = re.compile(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xef]")

Change = Callable[[bytes, str, random.Random], bytes]


class Mutation(NamedTuple):
    """A file, what it was, and what was done to it."""

    kind: str
    change: str
    data: bytes


@cache
def originals() -> dict[str, tuple[bytes, ...]]:
    """Valid files of every format, of the ways that its decoders have: palettes, alpha, frames, compressions."""
    rgb, alpha = Image.fromarray(photo()), with_alpha()
    palette, frames = rgb.quantize(32), [Image.fromarray(photo(seed=seed)) for seed in (1, 2)]
    grey16 = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    values = (grey16 / 65535).astype(np.float32)
    values[:9] = np.nan
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    return {
        "JPEG": (
            encode(rgb, "jpg", exif=exif(6)),
            encode(rgb, "jpg", progressive=True, restart_marker_rows=1),
            encode(rgb.convert("CMYK"), "jpg"),
            encode(rgb.convert("L"), "jpg"),
        ),
        "PNG": (encode(rgb), encode(alpha), encode(palette, transparency=bytes(range(32))), encode(grey16),
                encode(frames[0], **animated)),
        "WEBP": (encode(rgb, "webp"), encode(alpha, "webp", lossless=True), encode(frames[0], "webp", **animated)),
        "GIF": (encode(palette, "gif", transparency=0, comment=b"a comment"), encode(frames[0], "gif", **animated)),
        "BMP": (encode(rgb, "bmp"), encode(palette, "bmp"), encode(rgb.convert("1"), "bmp"), run_length_bmp()),
        "TIFF": (
            encode(rgb, "tif"),
            *(encode(rgb, "tif", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
            encode(rgb.convert("1"), "tif", compression="group4"),
            encode(grey16, "tif"),
            encode(values, "tif"),
        ),
        "AVIF": (encode(rgb, "avif"),),
    }  # fmt: skip


def run_length_bmp(width: int = 64, height: int = 48) -> bytes:
    """Rows of two runs each."""
    row = bytes((width // 2, 1, width - width // 2, 2, 0, 0))
    body = row * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    colours = bytes(value for grey in range(256) for value in (grey, 255 - grey, 9, 0))
    start = 14 + len(header) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + colours + body


def mutation(number: int, seed: int = 0) -> Mutation:
    """The one of this number: formats and changes take turns, and truncations go through every percent."""
    chance = random.Random(f"{seed}-{number}")
    kind = FORMATS[number % len(FORMATS)]
    turn = number // len(FORMATS)
    name = tuple(CHANGES)[turn % len(CHANGES)]
    original = chance.choice(originals()[kind])
    if name == "truncate":
        return Mutation(kind, name, original[: len(original) * (turn // len(CHANGES) % 100) // 100])
    return Mutation(kind, name, CHANGES[name](original, kind, chance))


def mutations(count: int, seed: int = 0) -> Iterator[Mutation]:
    """The first so many."""
    return (mutation(number, seed) for number in range(count))


def flip_bits(data: bytes, kind: str, chance: random.Random) -> bytes:
    """One to twenty of them."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 20)):
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, kind: str, chance: random.Random) -> bytes:
    """A stretch by random bytes, or by one byte."""
    length = chance.randint(1, min(64, len(data)))
    start = chance.randrange(len(data) - length + 1)
    new = chance.randbytes(length) if chance.random() < 0.5 else chance.choice((b"\0", b"\xff")) * length
    return data[:start] + new + data[start + length :]


def edit_header(data: bytes, kind: str, chance: random.Random) -> bytes:
    """Sizes, counts, depths and offsets become telling numbers; the checksums of a PNG fit."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        size = chance.choice((1, 2, 4))
        value = chance.choice(TELLING) % 256**size
        start = chance.randrange(2, min(HEADER_BYTES[kind], len(data) - size))
        changed[start : start + size] = value.to_bytes(size, chance.choice(("little", "big")))
    return with_checksums(bytes(changed)) if kind == "PNG" else bytes(changed)


def with_checksums(png: bytes) -> bytes:
    """The same chunks, each with the checksum of what it holds."""
    fixed, at = bytearray(png), 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        end = at + 8 + length
        if end + 4 <= len(png):
            struct.pack_into(">I", fixed, end, zlib.crc32(png[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def move_chunks(data: bytes, kind: str, chance: random.Random) -> bytes:
    """A chunk twice, or not at all, or behind another one."""
    chunks = split(data, kind)
    place = chance.randrange(len(chunks))
    match chance.randrange(3):
        case 0:
            chunks.insert(place, chunks[place])
        case 1:
            del chunks[place]
        case _:
            chunks.insert(chance.randrange(len(chunks)), chunks.pop(place))
    return b"".join(chunks)


def split(data: bytes, kind: str) -> list[bytes]:
    """The chunks of a PNG, the segments of a JPEG, else ten equal pieces."""
    if kind == "PNG":
        cuts, at = [8], 8
        while at + 8 <= len(data):
            at += 12 + struct.unpack_from(">I", data, at)[0]
            cuts.append(min(at, len(data)))
    elif kind == "JPEG":
        cuts = [found.start() for found in MARKER.finditer(data)]
    else:
        cuts = [len(data) * part // 10 for part in range(1, 10)]
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def join(data: bytes, kind: str, chance: random.Random) -> bytes:
    """Two files in one: another image, an archive, a page or an array before it or behind it."""
    other = chance.choice((*strangers(), *(chance.choice(files) for files in originals().values())))
    return data + other if chance.random() < 0.5 else other + data


@cache
def strangers() -> tuple[bytes, ...]:
    """Files that are no images."""
    archive, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(zipfile.ZipInfo("a.txt"), "a")
    np.save(array, np.zeros((4, 4, 3), np.uint8))
    return archive.getvalue(), array.getvalue(), b"<html><script>alert(1)</script></html>", b"%PDF-1.7\n", b"\0" * 100


def only_magic(data: bytes, kind: str, chance: random.Random) -> bytes:
    """The first bytes of a format, and noise."""
    return MAGIC[kind] + chance.randbytes(chance.randint(0, 2000))


def other_magic(data: bytes, kind: str, chance: random.Random) -> bytes:
    """A file that begins as one of another format does."""
    magic = MAGIC[chance.choice([other for other in FORMATS if other != kind])]
    return magic + data[len(magic) :]


def splice(data: bytes, kind: str, chance: random.Random) -> bytes:
    """The start of one file of the format, the end of another."""
    other = chance.choice(originals()[kind])
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]


def add_chunk(data: bytes, kind: str, chance: random.Random) -> bytes:
    """A block of metadata in a PNG or a JPEG, more than there is room for or packed; elsewhere noise within."""
    noise = chance.randbytes(chance.randint(0, 300))
    if kind == "PNG":
        name = chance.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"PLTE", b"tRNS", b"IHDR"))
        body = b"key\0\0" + zlib.compress(bytes(chance.choice((9, 2_000_000)))) if chance.random() < 0.5 else noise
        return data[:33] + png_chunk(name, body) + data[33:]
    if kind == "JPEG":
        name = bytes((0xFF, chance.choice((0xC0, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE))))
        body = chance.choice((b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"Photoshop 3.0\0", b"Adobe", b"")) + noise
        return data[:2] + name + struct.pack(">H", len(body) + chance.choice((2, 2, 2, 0, 900))) + body + data[2:]
    place = chance.randrange(len(data))
    return data[:place] + noise + data[place:]


CHANGES: Mapping[str, Change] = {
    change.__name__: change
    for change in (flip_bits, overwrite, edit_header, move_chunks, join, only_magic, other_magic, splice, add_chunk)
} | {"truncate": lambda data, kind, chance: data[: chance.randrange(len(data))]}
