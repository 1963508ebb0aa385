"""The image gate: what passes, and what is said of what does not."""

import threading

import numpy as np
import pytest
from images import bomb, broken_images, encode, good_images, photo
from PIL import Image

from mcbeit.preprocess import Preprocess
from mcbeit.serve.config import Limits
from mcbeit.serve.errors import RequestError
from mcbeit.serve.gate import ImageGate, PixelBudget

RULE = Preprocess(image_size=32)
ALL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def gate(**limits: object) -> ImageGate:
    return ImageGate(Limits(**limits), RULE, PixelBudget(400_000_000))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "data"), good_images().items(), ids=good_images())
def test_pixels__are_those_of_the_offline_preprocessing(name: str, data: bytes) -> None:
    assert np.array_equal(gate(formats=ALL).pixels(data), RULE.pixels(data))


@pytest.mark.parametrize(("name", "data"), broken_images().items(), ids=broken_images())
def test_pixels__broken_files_are_4xx_with_our_own_words(name: str, data: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        gate(formats=ALL).pixels(data)
    assert caught.value.status in (400, 413, 415)
    assert "0x" not in caught.value.message
    assert "PIL" not in caught.value.message


def test_pixels__one_pixel_is_an_image() -> None:
    assert gate().pixels(encode(Image.new("RGB", (1, 1), "red"))).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("limits", "data", "status", "told"),
    [
        ({}, b"", 400, "the image is empty"),
        ({}, b"hello, this is text", 415, "not an image file that is known here; allowed: JPEG, PNG"),
        ({}, encode(photo(), "tif"), 415, "a TIFF file"),
        ({}, bomb(), 413, "13000 x 13000 pixels, more than the 50000000 allowed"),
        ({"pixels": 3000}, encode(photo()), 413, "64 x 48 pixels, more than the 3000"),
        ({"side": 63}, encode(photo()), 413, "side of 64 pixels"),
        ({"aspect": 10}, encode(photo(4, 64)), 413, "more than 10 times"),
        ({}, encode(photo(), "jpg")[:-300], 400, "truncated or corrupt"),
        ({}, b"\x89PNG\r\n\x1a\n" + b"\0" * 40, 400, "header is corrupt"),
    ],
)
def test_pixels__refusals(limits: dict[str, object], data: bytes, status: int, told: str) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        gate(**limits).pixels(data)
    assert caught.value.status == status


def test_budget__waits_until_others_have_ended() -> None:
    budget, order = PixelBudget(100), []
    second_waits = threading.Event()

    def second() -> None:
        second_waits.set()
        with budget.taking(60):
            order.append("second")

    with budget.taking(60):
        thread = threading.Thread(target=second)
        thread.start()
        assert second_waits.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_limits__a_budget_holds_at_least_one_image() -> None:
    with pytest.raises(ValueError, match="must hold one image"):
        Limits(pixels=1000, pixels_in_flight=999)
