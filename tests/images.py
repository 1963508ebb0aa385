"""Images of every kind, made on the spot: what people keep on their disks, good and broken."""

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """Something like a photo, uint8 [height, width, 3]: noise with the spectrum of nature, and sharp-edged boxes."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.exp(2j * np.pi * rng.random((4, *frequency.shape))) / frequency**1.3
    light, *colours = np.fft.irfft2(spectrum, (height, width))
    waves = light[..., None] + 0.4 * np.stack(colours, -1)
    pixels = 128 + 60 * waves / (waves.std() + 1e-9)
    for _ in range(6):
        top, left = rng.integers(height), rng.integers(width)
        pixels[top : top + height // 5 + 1, left : left + width // 7 + 1] = rng.integers(256, size=3)
    return pixels.clip(0, 255).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "png", **options: Any) -> bytes:
    """The bytes of a file of this kind (a Pillow format name or "jpg", "tif"); options go to Pillow's `save`."""
    buffer = io.BytesIO()
    pil = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    pil.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind), **options)
    return buffer.getvalue()


def with_alpha(height: int = 48, width: int = 64) -> Image.Image:
    """RGBA: fully transparent on the left, fully opaque on the right."""
    image = Image.fromarray(photo(height, width)).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))))
    return image


def grey_16_bit(height: int = 48, width: int = 64) -> np.ndarray:
    """uint16 [height, width], using the whole range."""
    return np.linspace(0, 65535, height * width).astype(np.uint16).reshape(height, width)


def exif(orientation: int, order: str = "<") -> bytes:
    """An EXIF block with nothing but the orientation; `order` "<" little-endian, ">" big-endian."""
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + start + struct.pack(order + "IH", 8, 1) + entry + struct.pack(order + "I", 0)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_by_hand(values: np.ndarray, *, colour_type: int, depth: int, extra: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits that Pillow cannot write: colour type 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + end


def bomb(width: int = 13000, height: int = 13000) -> bytes:
    """A few kilobytes of 1-bit PNG that claim 169 million pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b"")


def good_images() -> dict[str, bytes]:
    """File name -> content, for every kind that must be readable. All are 64 wide and 48 high when upright."""
    rgb = Image.fromarray(photo())
    frames = [Image.fromarray(photo(seed=seed)) for seed in (1, 2)]
    palette = rgb.quantize(32)
    grey16, alpha = grey_16_bit(), with_alpha()
    return {
        "rgb.jpg": encode(rgb, "jpg", quality=95),
        "grey.jpg": encode(rgb.convert("L"), "jpg"),
        "progressive.jpg": encode(rgb, "jpg", progressive=True),
        "cmyk-adobe.jpg": encode(rgb.convert("CMYK"), "jpg", quality=95),
        "rotated.jpg": encode(rgb.transpose(Image.Transpose.ROTATE_90), "jpg", exif=exif(6)),
        "broken-exif.jpg": encode(rgb, "jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01\x03"),
        "two-pictures.jpg": encode(frames[0], "mpo", save_all=True, append_images=frames[1:]),
        "rgb.png": encode(rgb),
        "bit.png": encode(rgb.convert("1")),
        "grey.png": encode(rgb.convert("L")),
        "grey-alpha.png": encode(alpha.convert("LA")),
        "rgba.png": encode(alpha),
        "palette.png": encode(palette),
        "palette-transparent.png": encode(palette, transparency=0),
        "palette-alpha.png": encode(palette, transparency=bytes(range(0, 256, 8))),
        "grey-one-transparent.png": encode(rgb.convert("L"), transparency=128),
        "rgb-one-transparent.png": encode(rgb, transparency=rgb.getpixel((0, 0))),
        "grey-16-bit.png": encode(grey16),
        "grey-alpha-16-bit.png": png_by_hand(np.stack([grey16, grey16.T.reshape(48, 64)], -1), colour_type=4, depth=16),
        "rgb-16-bit.png": png_by_hand(np.stack([grey16] * 3, -1), colour_type=2, depth=16),
        "animated.png": encode(frames[0], save_all=True, append_images=frames[1:]),
        "invalid-animated.png": png_by_hand(photo(), colour_type=2, depth=8, extra=png_chunk(b"acTL", bytes(8))),
        "rgb.webp": encode(rgb, "webp"),
        "lossless-alpha.webp": encode(alpha, "webp", lossless=True),
        "animated.webp": encode(frames[0], "webp", save_all=True, append_images=frames[1:]),
        "rgb.bmp": encode(rgb, "bmp"),
        "bit.bmp": encode(rgb.convert("1"), "bmp"),
        "palette.bmp": encode(palette, "bmp"),
        "palette.gif": encode(palette, "gif"),
        "transparent.gif": encode(palette, "gif", transparency=0),
        "animated.gif": encode(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "rgb.tif": encode(rgb, "tif"),
        "deflate.tif": encode(rgb, "tif", compression="tiff_deflate"),
        "broken-tag.tif": _tif_with_broken_tag(rgb),
        "rgba.tif": encode(alpha, "tif"),
        "grey-16-bit.tif": encode(grey16, "tif"),
        "grey-16-bit-big-endian.tif": encode(Image.frombytes("I;16B", (64, 48), grey16.astype(">u2").tobytes()), "tif"),
        "grey-32-bit.tif": encode(grey16.astype(np.int32), "tif"),
        "float.tif": encode((grey16 / 65535).astype(np.float32), "tif"),
        "cmyk.tif": encode(rgb.convert("CMYK"), "tif"),
        "ycbcr.tif": encode(rgb.convert("YCbCr"), "tif", compression="tiff_lzw"),
        "lab.tif": encode(rgb.convert("LAB"), "tif"),
        "palette-alpha.tif": encode(palette.convert("RGBA").convert("PA"), "tif"),
    }


def _tif_with_broken_tag(image: Image.Image) -> bytes:
    """Two horizontal resolutions where there should be one, which is no reason to refuse the pixels."""
    data = encode(image, "tif", dpi=(72, 72))
    count = data.index(struct.pack("<HH", 282, 5)) + 4
    return data[:count] + struct.pack("<I", 2) + data[count + 4 :]


def broken_images() -> dict[str, bytes]:
    """File name -> content, for files that must be refused."""
    kinds = {"jpg": {}, "png": {}, "webp": {}, "gif": {}, "bmp": {}, "tif": {"compression": "tiff_lzw"}}
    whole = {kind: encode(photo(), kind, **options) for kind, options in kinds.items()}
    return {
        "empty.jpg": b"",
        "text.png": b"These are not the pixels you are looking for.\n",
        "text.bmp": b"BMX bikes are not images.\n",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "noise.jpg": b"\xff\xd8\xff" + np.random.default_rng(0).bytes(500),
        "zero-size.png": png_by_hand(np.zeros((0, 0, 3), np.uint8), colour_type=2, depth=8),
        "bomb.png": bomb(),
        "giant.png": bomb(2**31 - 1, 2**31 - 1),
        "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(28),
        **{f"half.{kind}": data[: len(data) // 2] for kind, data in whole.items()},
        **{f"header-only.{kind}": data[:16] for kind, data in whole.items()},
    }


def write_images(folder: Path, images: Mapping[str, bytes]) -> list[Path]:
    """Write the files into the folder, which is made if need be; their paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in images]
