import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from images import (
    broken_images,
    encode,
    exif,
    good_images,
    grey_16_bit,
    photo,
    png_by_hand,
    with_alpha,
    write_images,
)
from PIL import Image, ImageOps

from mcbeit.errors import ImageError
from mcbeit.image_files import decode, to_rgb

GOOD = good_images()
BROKEN = broken_images()
RGB = Image.fromarray(photo())


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def difference(first: Any, second: Any) -> int:
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


@pytest.mark.parametrize("name", GOOD)
def test_decode__every_kind_of_file_becomes_upright_rgb(name: str) -> None:
    image = decode(GOOD[name])
    assert (image.mode, image.size, image.info) == ("RGB", (64, 48), {})
    assert array(image).std() > 10


def test_decode__takes_a_path(tmp_path) -> None:
    (path,) = write_images(tmp_path / "new", {"rgb.png": GOOD["rgb.png"]})
    assert decode(path) == decode(str(path)) == decode(GOOD["rgb.png"]) == RGB


@pytest.mark.parametrize("name", ["rgb.png", "rgb.bmp", "rgb.tif", "deflate.tif", "invalid-animated.png"])
def test_decode__lossless_files_keep_every_value(name: str) -> None:
    assert decode(GOOD[name]) == RGB


@pytest.mark.parametrize("name", ["rgb.jpg", "cmyk-adobe.jpg", "rgb.webp", "lab.tif", "ycbcr.tif", "cmyk.tif"])
def test_decode__colours_survive_other_colour_spaces(name: str) -> None:
    assert (
        np.abs(array(decode(GOOD[name])) - photo()).mean() < 9
    )  # far below the 80 or so of swapped or inverted colours


@pytest.mark.parametrize("name", ["animated.png", "animated.webp", "animated.gif", "two-pictures.jpg"])
def test_decode__takes_the_first_of_several_pictures(name: str) -> None:
    image = array(decode(GOOD[name]))
    assert np.abs(image - photo(seed=1)).mean() < 12 < np.abs(image - photo(seed=2)).mean()


def test_decode__cmyk_jpeg_as_adobe_stores_it_is_not_a_negative() -> None:
    orange = encode(Image.new("CMYK", (8, 8), (0, 127, 255, 0)), "jpg", quality=100)
    assert b"Adobe" in orange
    assert difference(decode(orange), np.full((8, 8, 3), (255, 128, 0))) <= 2


def test_decode__lab_is_the_colour_it_means() -> None:
    grey = encode(Image.new("LAB", (4, 4), (128, 128, 128)), "tif")  # lightness 50 %, a = b = 0
    assert difference(decode(grey), np.full((4, 4, 3), 119)) <= 1


@pytest.mark.parametrize("name", ["rgba.png", "lossless-alpha.webp", "rgba.tif"])
def test_decode__alpha_is_composited_on_white(name: str) -> None:
    *colours, alpha = np.moveaxis(array(with_alpha()), -1, 0)
    wanted = (np.stack(colours) * alpha + 255 * (255 - alpha)) / 255
    pixels = array(decode(GOOD[name]))
    assert np.abs(pixels - np.moveaxis(wanted, 0, -1)).max() <= 0.5 + 1 / 128
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, -1] == photo()[:, -1]).all()


@pytest.mark.parametrize(
    ("mode", "pixel", "wanted"),
    [
        ("LA", (0, 0), 255),
        ("LA", (100, 255), 100),
        ("La", (50, 128), 177),  # premultiplied: 50 + 127
        ("RGBa", (50, 50, 50, 128), 177),
        ("PA", (0, 0), 255),
        ("1", 1, 255),
        ("L", 7, 7),
        ("HSV", (0, 0, 7), 7),
        ("CMYK", (0, 0, 0, 248), 7),
        ("YCbCr", (7, 128, 128), 7),
        ("RGBX", (7, 7, 7, 0), 7),
    ],
)
def test_to_rgb__every_mode_of_pillow(mode: str, pixel: Any, wanted: int) -> None:
    image = to_rgb(Image.new(mode, (3, 2), pixel))
    assert image.mode == "RGB"
    assert difference(image, np.full((2, 3, 3), wanted)) <= 1


def test_decode__a_transparent_palette_entry_or_colour_is_white() -> None:
    index = np.asarray(RGB.quantize(32))
    for name in ("palette-transparent.png", "transparent.gif"):
        pixels = array(decode(GOOD[name]))
        assert (pixels[index == 0] == 255).all()
    assert (array(decode(GOOD["rgb-one-transparent.png"]))[0, 0] == 255).all()
    grey = array(decode(GOOD["grey-one-transparent.png"]))
    assert (grey[np.asarray(RGB.convert("L")) == 128] == 255).all()


@pytest.mark.parametrize(
    "name", ["grey-16-bit.png", "grey-16-bit.tif", "grey-16-bit-big-endian.tif", "grey-32-bit.tif"]
)
def test_decode__16_bit_grey_is_divided_by_257_and_rounded(name: str) -> None:
    wanted = np.rint(grey_16_bit() / 257)
    assert (array(decode(GOOD[name])) == wanted[..., None]).all()


def test_decode__16_bit_colour_loses_its_low_byte() -> None:
    assert (array(decode(GOOD["rgb-16-bit.png"])) == (grey_16_bit() >> 8)[..., None]).all()
    rgba = np.array([[[0x1234, 0x80FF, 0xFFFF, 0xFFFF], [0, 0, 0, 0]]])
    assert array(decode(png_by_hand(rgba, colour_type=6, depth=16))).tolist() == [[[0x12, 0x80, 0xFF], [255] * 3]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 0.25, 0.5, 1]], np.float32), [0, 64, 128, 255]),  # in [0, 1]: times 255
        (np.array([[-10, 0, 41]], np.float32), [0, 50, 255]),  # else: from the lowest to the highest
        (np.array([[1000, 2000, 3000]], np.float32), [0, 128, 255]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 1, np.inf, -np.inf]], np.float32), [0, 255, 0, 0]),
        (np.array([[np.nan, np.nan]], np.float32), [0, 0]),
        (np.array([[7, 7]], np.float32), [0, 0]),  # constant, and of no known scale
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),  # up to 255: as they are
        (np.array([[0, 257, 300]], np.int32), [0, 1, 1]),  # above: 16-bit
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),  # beyond: from the lowest to the highest
        (np.array([[-(2**31), 2**31 - 1]], np.int32), [0, 255]),
    ],
)
def test_decode__32_bit_and_float_grey(values: np.ndarray, wanted: list[int]) -> None:
    assert array(decode(encode(values, "tif")))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_decode__turns_the_image_upright_by_its_exif_orientation(orientation: int, kind: str, order: str) -> None:
    tag = {"tiffinfo": {0x0112: orientation}} if kind == "tif" else {"exif": exif(orientation, order)}
    data = encode(RGB, kind, **tag)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = decode(data)
    assert image.size == ((64, 48) if orientation < 5 else (48, 64))
    assert (array(image) == array(wanted)).all()
    assert to_rgb(image) == ImageOps.exif_transpose(image) == image  # not turned a second time


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_decode__an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    assert decode(encode(RGB, exif=exif(orientation))) == RGB


@pytest.mark.parametrize("name", BROKEN)
def test_decode__refuses_broken_files_with_one_short_reason(name: str, tmp_path) -> None:
    with pytest.raises(ImageError) as error:
        decode(BROKEN[name])
    assert len(str(error.value)) < 80
    assert "0x" not in str(error.value)  # a memory address helps an attacker
    (path,) = write_images(tmp_path, {name: BROKEN[name]})
    with pytest.raises(ImageError) as error_of_path:
        decode(path)
    assert str(error_of_path.value) == f"{path}: {error.value}"


def test_decode__reasons() -> None:
    for name, reason in {
        "empty.jpg": "the file is empty",
        "text.png": "not a JPEG, PNG, WebP, GIF, BMP or TIFF image",
        "zero-size.png": "the PNG header is corrupt",
        "half.jpg": "the JPEG data is truncated or corrupt",
        "bomb.png": "13000 x 13000 pixels are more than 89478485",
    }.items():
        with pytest.raises(ImageError, match=f"^{reason}$"):
            decode(BROKEN[name])


def test_decode__refuses_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ImageError, match=r"missing\.jpg: cannot be read: No such file or directory"):
        decode(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="cannot be read: Is a directory"):
        decode(tmp_path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_decode__a_file_cut_anywhere_is_refused_or_complete(kind: str) -> None:
    data = encode(photo(16, 16), kind)
    whole = decode(data)
    for length in range(len(data)):
        try:
            assert decode(data[:length]) == whole, f"{length} of {len(data)} bytes"
        except ImageError:
            continue
        assert len(data) - length < 24  # nothing but the end mark is missing


def test_decode__never_fails_otherwise_or_warns_whatever_the_bytes() -> None:
    rng = np.random.default_rng(0)
    for data in GOOD.values():
        for _ in range(8):
            damaged = np.frombuffer(data, np.uint8).copy()
            where = rng.integers(min(len(data), 400), size=3)
            damaged[where] = rng.integers(256, size=3)
            try:
                image = decode(damaged.tobytes(), max_pixels=10**6)
            except ImageError:
                continue
            assert image.mode == "RGB"
            assert min(image.size) >= 1


def test_decode__the_limit_of_pixels_is_an_argument() -> None:
    assert decode(GOOD["rgb.png"], max_pixels=64 * 48) == RGB
    with pytest.raises(ImageError, match="64 x 48 pixels are more than 3071"):
        decode(GOOD["rgb.png"], max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("name", ["broken-tag.tif", "broken-exif.jpg", "invalid-animated.png", "palette-alpha.png"])
def test_decode__is_quiet_where_pillow_warns(name: str) -> None:
    with pytest.warns(UserWarning, match="tag|EXIF|APNG|Transparency"):
        Image.open(io.BytesIO(GOOD[name])).convert("RGB")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(GOOD[name])


def test_decode__leaves_the_settings_of_pillow_and_python_alone() -> None:
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    for data in GOOD.values():
        decode(data)
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before


def test_decode__from_many_threads() -> None:
    files = list(GOOD.values()) * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, files)) == [decode(data) for data in GOOD.values()] * 4
