"""Label maps from files: what a pixel value means, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from mcbeit.errors import ImageError
from mcbeit.segmentation.label_maps import IGNORED, read_label_map


def png(values: list[list[int]], *, mode: str = "L", dtype: type = np.uint8) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.array(values, dtype))
    if mode == "P":
        image = image.copy()
        image.putpalette([255, 0, 0] * 256)
    image.save(file, "PNG")
    return file.getvalue()


def test_read_label_map__of_ade20k_counts_from_one_and_ignores_zero() -> None:
    found = read_label_map(png([[0, 1, 150], [2, 0, 255]]), num_classes=150, zero_is_ignored=True)
    assert found.tolist() == [[IGNORED, 0, 149], [1, IGNORED, IGNORED]]  # 0 has not wrapped around to 254 or 255 - 1


@pytest.mark.parametrize("mode", ["L", "P"])
def test_read_label_map__of_a_users_own_counts_from_zero(mode: str) -> None:
    found = read_label_map(png([[0, 1, 255]], mode=mode), num_classes=2, zero_is_ignored=False)
    assert found.tolist() == [[0, 1, IGNORED]]
    assert found.dtype == np.uint8


def test_read_label_map__of_16_bits() -> None:
    found = read_label_map(png([[0, 3, 255]], dtype=np.uint16), num_classes=4, zero_is_ignored=False)
    assert found.tolist() == [[0, 3, IGNORED]]


def test_read_label_map__names_a_value_that_is_no_class() -> None:
    with pytest.raises(ImageError, match=r"has the value 4, but the 3 classes are 0 to 2, and 255 is ignored"):
        read_label_map(png([[0, 4]]), num_classes=3, zero_is_ignored=False)
    with pytest.raises(ImageError, match=r"has the value 4, but the 3 classes are 1 to 3, and 255 and 0 are ignored"):
        read_label_map(png([[0, 4]]), num_classes=3, zero_is_ignored=True)


@pytest.mark.parametrize("zero_is_ignored", [False, True])
def test_read_label_map__does_not_let_negative_values_wrap_around(zero_is_ignored: bool) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[1, 2], [-1, -2]], np.int32)).save(file, "TIFF")
    with pytest.raises(ImageError, match=r"has the value -1, but the 3 classes are"):
        read_label_map(file.getvalue(), num_classes=3, zero_is_ignored=zero_is_ignored)


def test_read_label_map__refuses_colours_and_what_is_no_image() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    with pytest.raises(ImageError, match=r"has pixels of the mode RGB, but the value of a pixel must be its class"):
        read_label_map(file.getvalue(), num_classes=3, zero_is_ignored=False)
    for data in (b"", b"not an image", png([[1] * 40] * 40)[:60]):
        with pytest.raises(ImageError, match="label map cannot be decoded"):
            read_label_map(data, num_classes=3, zero_is_ignored=False)
