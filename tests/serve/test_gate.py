"""The image gate: what passes, and what is said of what does not."""

import asyncio
import struct
import threading

import numpy as np
import pytest
from images import bomb, broken_images, encode, good_images, photo
from PIL import Image

from mcbeit.preprocess import Preprocess
from mcbeit.serve.config import Limits
from mcbeit.serve.decoding import Decoding, PixelBudget
from mcbeit.serve.errors import RequestError
from mcbeit.serve.gate import ImageGate

RULE = Preprocess(image_size=32)
ALL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def gate(**limits: object) -> ImageGate:
    found = Limits(**limits)  # type: ignore[arg-type]
    return ImageGate(found, RULE, PixelBudget(found))


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
    budget, order = PixelBudget(Limits(pixels=100, pixels_in_flight=100)), list[str]()
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


def test_pixels__tiles_that_are_larger_than_the_image() -> None:
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 8, 325: 16}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(40)
    with pytest.raises(RequestError, match="the tiles of the TIFF file have more than the 50000000 pixels"):
        gate(formats=ALL).pixels(file)


def test_budget__large_images_leave_half_of_it_to_others() -> None:
    budget = PixelBudget(Limits(pixels=50, pixels_in_flight=100, large_pixels=40))
    entered = threading.Event()

    def second() -> None:
        with budget.taking(50):
            entered.set()

    with budget.taking(50):
        thread = threading.Thread(target=second)
        thread.start()
        with budget.taking(30):
            assert not entered.wait(0.1)
    assert entered.wait(10)
    thread.join(10)


def test_decoding__large_images_have_a_short_line_of_their_own() -> None:
    async def work() -> None:
        decoding, may_go = Decoding(2, Limits(waiting_large=2)), threading.Event()
        waiting = [asyncio.create_task(decoding.run_large(may_go.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="2 large images are waiting") as caught:
            await decoding.run_large(may_go.wait)
        assert (caught.value.status, caught.value.retry_after) == (429, 2.0)
        assert await decoding.run(lambda: "others go on") == "others go on"
        may_go.set()
        assert await asyncio.gather(*waiting) == [True, True]
        assert await decoding.run_large(may_go.wait)
        decoding.close()

    asyncio.run(work())


def test_decoding__learns_what_an_image_takes() -> None:
    decoding = Decoding(2, Limits())
    for _ in range(100):
        decoding.learn(0.4)
    assert decoding.seconds_per_item == pytest.approx(0.2)
    assert decoding.is_large(16_000_000)
    assert not decoding.is_large(15_999_999)
    decoding.close()
