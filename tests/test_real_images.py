"""Images to compare on."""

from pathlib import Path

import numpy as np
import pytest
from tiny import CHANNELS, write_planes, write_shapes

from mcbeit.data import DataConfig
from mcbeit.errors import DataError
from mcbeit.preprocess import Preprocess
from mcbeit.real_images import real_pixels

SMALL = Preprocess(image_size=24)


def test_real_pixels__without_a_source_are_crops_of_a_photograph() -> None:
    pixels, told = real_pixels(None, SMALL, 20)
    assert (pixels.shape, pixels.dtype) == ((20, 24, 24, 3), np.uint8)
    assert told == "20 crops of the photograph in matplotlib"
    assert len({image.tobytes() for image in pixels}) == 20
    assert np.array_equal(pixels, real_pixels(DataConfig(), SMALL, 20)[0])


def test_real_pixels__lie_evenly_over_a_source(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path)
    paths = sorted(folder.rglob("*.png"))
    paths[0].write_bytes(b"")
    pixels, told = real_pixels(DataConfig(source=str(folder)), SMALL, 6)
    assert pixels.shape == (6, 24, 24, 3)
    assert told == f"6 images of {folder}"
    assert np.array_equal(pixels[-1], SMALL.pixels(paths[-1]))
    many, _ = real_pixels(DataConfig(source=str(folder)), SMALL, 1000)
    assert len(many) == len(paths) - 1


def test_real_pixels__of_other_channels_need_a_source(tmp_path: Path) -> None:
    preprocess = Preprocess(**CHANNELS["preprocess"])
    with pytest.raises(DataError, match=r"the model takes 5 channels; name some of its images"):
        real_pixels(None, preprocess, 4)
    source = DataConfig(source=str(write_planes(tmp_path)), channels=5)
    assert real_pixels(source, preprocess, 4)[0].shape == (4, 16, 16, 5)


def test_real_pixels__needs_images_that_can_be_read(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"only 0 of the images can be read"):
        real_pixels(DataConfig(source=str(tmp_path)), SMALL, 4)
