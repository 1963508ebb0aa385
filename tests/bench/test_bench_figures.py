"""Charts and pictures for a page that is one file."""

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from images import photo
from matplotlib import colormaps
from PIL import Image

from mcbeit.bench.figures import (
    COLOUR_MAP,
    PAGE_COLOURS,
    Curve,
    code_use_chart,
    curve_chart,
    heat_uri,
    picture_uri,
    scale_uri,
)


def opened(uri: str) -> Image.Image:
    head, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{(image.format or '').lower()}"
    return image


LOSS = Curve("loss", [0, 20, 40], [5.5, 4.5, 3.2], "loss", [2.3, 2.3, 2.2], "target entropy")


@pytest.mark.parametrize(
    "chart",
    [curve_chart(LOSS), curve_chart(Curve("one", [7], [0.5])), code_use_chart(np.array([3.0, 0.0, 9.0, 1.0]))],
)
def test_charts__are_whole_elements_without_ids_and_links(chart: str) -> None:
    root = ET.fromstring(chart)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert not [node for node in root.iter() if "id" in node.attrib or node.tag in ("use", "defs", "style")]
    assert "http" not in chart
    assert "url(" not in chart


def test_curve_chart__in_the_colours_of_the_page() -> None:
    chart = curve_chart(LOSS)
    assert all(colour in chart for colour in PAGE_COLOURS.values())
    assert not any(stand_in in chart for stand_in in PAGE_COLOURS)
    assert "#000000" not in chart
    texts = {node.text for node in ET.fromstring(chart).iter("text")}
    assert {"loss", "target entropy", "step"} <= texts
    assert "last value 3.2" in chart


def test_curve_chart__escapes_titles() -> None:
    assert ET.fromstring(curve_chart(Curve('a "<b>"', [0, 1], [1.0, 2.0]))).get("aria-label", "").startswith('a "<b>"')


def test_curve_chart__shows_a_single_measurement() -> None:
    assert "var(--first)" in curve_chart(Curve("one", [7], [0.5]))


def test_picture_uri__small_pictures_to_the_bit() -> None:
    pixels = photo(28, 28)
    with opened(picture_uri(pixels)) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), pixels)


def test_picture_uri__large_pictures_are_reduced() -> None:
    with opened(picture_uri(photo(224, 224))) as image:
        assert (image.format, image.size) == ("JPEG", (192, 192))
    with opened(picture_uri(photo(224, 112), size=96)) as image:
        assert image.size == (48, 96)


def test_heat_uri__from_low_to_high() -> None:
    values = np.array([[-3.0, 0.5], [1.0, 9.0]], dtype=np.float32)
    with opened(heat_uri(values, low=0.0, high=1.0)) as image:
        found = np.asarray(image)
    lowest, middle, highest = (colormaps[COLOUR_MAP](x, bytes=True)[:3] for x in (0.0, 0.5, 1.0))
    assert np.array_equal(found, np.array([[lowest, middle], [highest, highest]]))


def test_heat_uri__of_equal_values() -> None:
    with opened(heat_uri(np.ones((2, 2), dtype=np.float32), low=1.0, high=1.0)) as image:
        assert image.size == (2, 2)


def test_scale_uri__gets_lighter() -> None:
    with opened(scale_uri()) as image:
        light = np.asarray(image.convert("L"))[0].astype(int)
    assert (np.diff(light) >= 0).all()
    assert light[-1] > light[0] + 100
