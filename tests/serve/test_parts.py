"""Files of a few kilobytes that would keep a thread busy for minutes."""

import struct
import zlib

import pytest
from images import encode, good_images, photo, png_chunk
from PIL import Image

from mcbeit.errors import ImageError
from mcbeit.preprocess import Preprocess
from mcbeit.serve.config import Limits
from mcbeit.serve.decoding import PixelBudget
from mcbeit.serve.errors import RequestError
from mcbeit.serve.gate import ImageGate
from mcbeit.serve.parts import MAX_EXIF, MAX_PARTS, MAX_SCANS, check_parts

JPEG = encode(photo(), "jpg", progressive=True, restart_marker_rows=1)
PNG = encode(photo())
SCAN = b"\xff\xda\0\x08\1\1\0\1\x3f\0"  # of one component, with nothing in it


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def with_scans(count: int) -> bytes:
    """So many more of them."""
    return JPEG[:-2] + SCAN * count + JPEG[-2:]


@pytest.mark.parametrize(("name", "data"), good_images().items(), ids=good_images())
def test_check_parts__good_images_pass(name: str, data: bytes) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        check_parts(kind, data)


def test_jpeg__scans_are_counted_as_libjpeg_would_do_them() -> None:
    scans = JPEG.count(b"\xff\xda")
    assert 5 < scans < 20
    check_parts("JPEG", with_scans(MAX_SCANS - scans))
    with pytest.raises(ImageError, match="more than 100 scans"):
        check_parts("JPEG", with_scans(MAX_SCANS - scans + 1))


@pytest.mark.parametrize(
    "between", [b"", segment(0xFE, b"\xff\xd9"), b"\xff\xd0", b"junk\xff\0", segment(0xC4, b"\xff\xd9")]
)
def test_jpeg__nothing_between_scans_hides_them(between: bytes) -> None:
    with pytest.raises(ImageError, match="more than 100 scans"):
        check_parts("JPEG", JPEG[:-2] + (between + SCAN) * MAX_SCANS)


def test_jpeg__what_looks_like_scans_in_metadata_or_behind_the_end_is_none() -> None:
    check_parts("JPEG", JPEG[:2] + segment(0xE1, SCAN * 1000) + JPEG[2:])
    check_parts("JPEG", JPEG + SCAN * 1000)


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (segment(0xFE, b""), MAX_PARTS + 1),
        (b"\xff", MAX_PARTS + 1),
        (b"\0", MAX_PARTS + 1),
        (segment(0xE1, b"Exif\0\0x"), MAX_EXIF + 1),
    ],
)
def test_jpeg__headers_without_end(head: bytes, count: int) -> None:
    check_parts("JPEG", JPEG[:2] + head * (count // 2) + JPEG[2:])
    with pytest.raises(ImageError, match="far too many parts"):
        check_parts("JPEG", JPEG[:2] + head * count + JPEG[2:])


@pytest.mark.parametrize("place", [33, -12])
def test_png__chunks_are_counted(place: int) -> None:
    chunk = png_chunk(b"abCd", b"")
    check_parts("PNG", PNG[:place] + chunk * (MAX_PARTS - 9) + PNG[place:])
    with pytest.raises(ImageError, match="far too many chunks"):
        check_parts("PNG", PNG[:place] + chunk * MAX_PARTS + PNG[place:])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe0\xff\xff", b"\x89PNG\r\n\x1a\n\0"]
)
def test_check_parts__what_is_cut_off_is_left_to_the_decoder(data: bytes) -> None:
    check_parts("JPEG", data)
    check_parts("PNG", data)


def test_gate__refuses_them_before_they_are_opened() -> None:
    gate = ImageGate(Limits(), Preprocess(image_size=32), PixelBudget(Limits()))
    large = encode(Image.new("RGB", (4000, 4000)), "jpg", progressive=True)
    for data in (large[:-2] + SCAN * 100_000 + large[-2:], JPEG[:2] + b"\xff" * 9_000_000 + JPEG[2:]):
        with pytest.raises(RequestError, match="the image cannot be read") as caught:
            gate.pixels(data)
        assert caught.value.status == 400


def test_gate__packed_text_has_its_limits() -> None:
    gate = ImageGate(Limits(), Preprocess(image_size=32), PixelBudget(Limits()))
    text = png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(50_000_000)))
    with pytest.raises(RequestError, match="PNG header is corrupt"):
        gate.pixels(PNG[:33] + text + PNG[33:])
