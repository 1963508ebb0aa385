import io
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from images import encode, exif, grey_16_bit, photo, with_alpha
from PIL import Image

from mcbeit.errors import DataError, ImageError
from mcbeit.multichannel import as_planes, decode_image, decode_planes, false_colours


def planes(channels: int = 5, height: int = 12, width: int = 16, dtype: str = "uint16") -> np.ndarray:
    """[height, width, channels], the whole range of an integer type or normal floats."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=(height, width, channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (height, width, channels), dtype=dtype, endpoint=True)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def message(data: bytes, channels: int = 5, **options: Any) -> str:
    with pytest.raises(ImageError) as error:
        decode_planes(data, channels, **options)
    return str(error.value)


# dtype


@pytest.mark.parametrize("pack", [npy, lambda values: tiff(values, photometric="minisblack", planarconfig="contig")])
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [("uint8", 255), ("uint16", 65535), ("uint32", 2**32 - 1), ("int16", 1), ("float32", 1), ("float64", 1)],
)
def test_decode_planes__unsigned_integers_are_shares_and_the_rest_is_as_it_is(pack: Any, dtype: str, factor) -> None:
    values = planes(dtype=dtype)
    found = decode_planes(pack(values), 5)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, values.astype(np.float64) / factor, rtol=1e-6)


def test_decode_planes__what_is_not_finite_turns_0() -> None:
    values = np.array([[[np.nan, 1.0], [np.inf, -np.inf]]], dtype=np.float32)
    assert decode_planes(npy(values), 2).tolist() == [[[0, 1], [0, 0]]]
    assert decode_planes(npy(np.full((3, 4), 1e300)), 1).tolist() == np.zeros((3, 4, 1)).tolist()


def test_decode_planes__takes_booleans_and_refuses_complex_numbers() -> None:
    assert decode_planes(npy(np.eye(2, dtype=bool)), 1)[:, :, 0].tolist() == [[1, 0], [0, 1]]
    assert "no real numbers" in message(npy(planes().astype(complex)))


# where the channels are


def test_decode_planes__finds_the_channels_of_an_array() -> None:
    values = planes()
    wanted = decode_planes(npy(values), 5)
    assert np.array_equal(decode_planes(npy(np.moveaxis(values, 2, 0)), 5), wanted)
    grey = values[:, :, 0]
    for shape in ((12, 16), (12, 16, 1), (1, 12, 16)):
        assert np.array_equal(decode_planes(npy(grey.reshape(shape)), 1), wanted[:, :, :1])


def test_decode_planes__refuses_an_array_that_may_be_read_in_two_ways() -> None:
    told = message(npy(planes(channels=5, height=5)))
    assert "has the shape [5, 16, 5]: its channels may be the first or the last axis" in told


@pytest.mark.parametrize("shape", [(12, 16, 4), (12, 16, 3), (4, 12, 16), (12, 16), (5,), (2, 12, 16, 5)])
def test_decode_planes__refuses_another_number_of_channels(shape: tuple[int, ...]) -> None:
    told = message(npy(np.zeros(shape, np.uint8)))
    assert "data.channels" in told or "two or three axes" in told


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "contig", "photometric": "minisblack"},
        {"planarconfig": "separate", "photometric": "minisblack"},
        {"photometric": "minisblack", "metadata": None},  # a page per channel
        {"photometric": "minisblack", "compression": "zlib", "tile": (16, 16), "planarconfig": "contig"},
        {"photometric": "minisblack", "bigtiff": True, "byteorder": ">", "planarconfig": "separate"},
        {"photometric": "minisblack", "imagej": True},
    ],
)
def test_decode_planes__takes_every_layout_of_a_tiff(options: dict[str, Any]) -> None:
    values = planes()
    is_last = options.get("planarconfig") == "contig"
    data = tiff(values if is_last else np.ascontiguousarray(np.moveaxis(values, 2, 0)), **options)
    np.testing.assert_allclose(decode_planes(data, 5), values / 65535, rtol=1e-6)
    assert message(data, 4) == "the image has 5 channels, data.channels is 4"


def test_decode_planes__takes_a_grey_tiff_and_one_with_alpha() -> None:
    grey = grey_16_bit()
    np.testing.assert_allclose(decode_planes(encode(grey, "tif"), 1)[:, :, 0], grey / 65535, rtol=1e-6)
    assert decode_planes(encode(with_alpha(), "tif"), 4).shape == (48, 64, 4)


def test_decode_planes__refuses_a_tiff_of_more_axes() -> None:
    stack = np.zeros((2, 5, 12, 16), np.uint8)
    assert "at most one may be of channels" in message(tiff(stack, photometric="minisblack", metadata={"axes": "TCYX"}))


def test_decode_planes__takes_ordinary_files_of_as_many_channels() -> None:
    assert np.array_equal(decode_planes(encode(with_alpha()), 4), np.asarray(with_alpha()) / np.float32(255))
    grey = Image.fromarray(photo()).convert("L")
    assert np.array_equal(decode_planes(encode(grey), 1)[:, :, 0], np.asarray(grey) / np.float32(255))
    turned = encode(grey.transpose(Image.Transpose.ROTATE_90), "jpg", exif=exif(6), quality=95)
    assert decode_planes(turned, 1).shape == (48, 64, 1)
    np.testing.assert_allclose(decode_planes(encode(grey_16_bit()), 1)[:, :, 0], grey_16_bit() / 65535, rtol=1e-6)
    assert message(encode(photo())) == "the PNG image is RGB, 3 channels; data.channels is 5"
    assert "is P, 1 channels" in message(encode(grey.quantize(8)), 1)


# what cannot be read


def test_decode_planes__refuses_broken_files() -> None:
    whole = {"npy": npy(planes()), "tif": tiff(planes(), photometric="minisblack", planarconfig="contig")}
    for data in whole.values():
        for size in (10, 100, len(data) // 2):
            assert "truncated or corrupt" in message(data[:size])
    whole = encode(with_alpha())
    assert message(whole[: len(whole) // 2], 4) == "the PNG data is truncated or corrupt"
    assert message(b"") == "the file is empty"
    assert message(npy(np.array([["x"]], dtype=object))).startswith("the .npy file is truncated or corrupt")
    assert "has no pixels" in message(npy(np.zeros((0, 16, 5))))


def test_decode_planes__refuses_too_many_pixels() -> None:
    for data in (npy(planes()), tiff(planes(), photometric="minisblack", planarconfig="contig")):
        assert "more than 100" in message(data, max_pixels=100)
    assert "more than 100" in message(encode(with_alpha()), 4, max_pixels=100)


def test_decode_planes__says_what_is_not_installed(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    data = tiff(planes(), photometric="minisblack", planarconfig="contig")
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
    assert message(data).endswith("pip install imagecodecs")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"pip install 'mcbeit\[data\]'"):
        decode_planes(data, 5)


# other doors


def test_decode_image__of_three_channels_is_rgb() -> None:
    image = decode_image(encode(photo()), 3)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), photo())


def test_decode_image__of_three_channels_says_what_is_no_ordinary_tiff() -> None:
    with pytest.raises(ImageError, match="the TIFF file has other channels or numbers than an ordinary image"):
        decode_image(tiff(planes(), photometric="minisblack", planarconfig="contig"), 3)


def test_as_planes__takes_files_and_arrays(tmp_path) -> None:
    values = planes()
    (tmp_path / "x.npy").write_bytes(npy(values))
    wanted = decode_planes(npy(values), 5)
    for image in (npy(values), tmp_path / "x.npy", str(tmp_path / "x.npy"), values):
        assert np.array_equal(as_planes(image, 5), wanted)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        as_planes(tmp_path / "y.npy", 5)
    with pytest.raises(ImageError, match=r"shape \[12, 16, 5\]; \[height, width, 4\] is wanted"):
        as_planes(values, 4)
    with pytest.raises(ImageError, match=r"\[height, width, 5\] is wanted"):
        as_planes(Image.fromarray(photo()), 5)


def test_false_colours__stretches_what_is_no_colour() -> None:
    assert np.array_equal(false_colours(photo()), photo())
    shown = false_colours(planes(dtype="float32"))
    assert (shown.dtype, shown.shape, shown.min(), shown.max()) == (np.uint8, (12, 16, 3), 0, 255)
    grey = false_colours(planes(channels=2))
    assert np.array_equal(grey[:, :, 0], grey[:, :, 2])
    assert false_colours(np.ones((2, 2, 1), np.float32)).tolist() == np.zeros((2, 2, 3)).tolist()
