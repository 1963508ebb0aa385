"""Run-length codes and polygons, by hand and against pycocotools."""

import json
import sys

import numpy as np
import pytest
from pycocotools import mask as reference

from mcbeit.detection.rle import box, decode, encode
from mcbeit.errors import DataError

# the reference's own `decode` under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
CORNER = np.array([[0, 1, 1], [0, 0, 1]], dtype=bool)  # down the columns: 0 0 | 1 0 | 1 1


def masks(num_masks: int = 40) -> list[np.ndarray]:
    """Noise of all densities, blobs with long runs, and the two extremes."""
    generator = np.random.default_rng(0)
    found = [np.zeros((5, 4), dtype=bool), np.ones((3, 1), dtype=bool)]
    for share in np.linspace(0, 1, num_masks):
        height, width = generator.integers(1, 300, size=2)
        found.append(generator.random((height, width)) < share)
        rows, columns = np.ogrid[:height, :width]
        found.append((rows - height * share) ** 2 + (columns - width / 2) ** 2 < (0.4 * min(height, width)) ** 2)
    return found


def test_decode__counts_down_the_columns() -> None:
    np.testing.assert_array_equal(decode({"size": [2, 3], "counts": [2, 1, 1, 2]}, 2, 3), CORNER)
    np.testing.assert_array_equal(decode({"size": [2, 3], "counts": [0, 0, 2, 1, 1, 2]}, 2, 3), CORNER)


def test_encode__is_ready_for_json_and_comes_back() -> None:
    for mask in masks():
        code = encode(mask)
        assert code == json.loads(json.dumps(code))
        assert code["size"] == list(mask.shape)
        np.testing.assert_array_equal(decode(code, *mask.shape), mask)
        np.testing.assert_array_equal(reference.decode(code).astype(bool), mask)


def test_encode__does_not_mind_the_order_of_the_memory() -> None:
    mask = np.random.default_rng(0).random((30, 50)) < 0.5
    assert encode(mask) == encode(np.asfortranarray(mask)) == encode(mask[::-1][::-1])


def test_decode__takes_bytes_as_pycocotools_makes_them() -> None:
    code = reference.encode(np.asfortranarray(CORNER, dtype=np.uint8))
    assert isinstance(code["counts"], bytes)
    np.testing.assert_array_equal(decode(code, 2, 3), CORNER)


def test_decode__fills_polygons() -> None:
    square = [2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]
    expected = np.zeros((8, 10), dtype=bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(decode([square], 8, 10), expected)
    expected[5:7, 8:10] = True
    np.testing.assert_array_equal(decode([square, [8, 5, 12, 5, 12, 7, 8, 7]], 8, 10), expected)  # cut at the border
    triangle = [0, 0, 10, 0, 0, 8]
    np.testing.assert_array_equal(
        decode([triangle], 8, 10), reference.decode(reference.frPyObjects([triangle], 8, 10))[..., 0].astype(bool)
    )


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 2], "counts": [2, 1, 1, 2]}, r"is of the size \[3, 2\], its image is 2 high and 3 wide"),
        ({"size": [2, 3], "counts": [2, 1, 1]}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": [2, 1, 1, 3]}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": [8, -2]}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": [2.0, 1.0, 3.0]}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": []}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": ""}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": "211"}, "does not count the 6 pixels"),
        ({"size": [2, 3], "counts": "211P"}, "does not count the 6 pixels"),  # says that more follows
        ({"size": [2, 3], "counts": "2 12"}, "does not count the 6 pixels"),
        ({"counts": [6]}, "with 'size' and 'counts'"),
        (None, "is a list of polygons, or a run-length code"),
        ([], "at least three points"),
        ([[0, 0, 4, 4]], "at least three points"),
        ([[0, 0, 4, 4, 2]], "at least three points"),
        ([[0, 0, 4, 4, 2, float("nan")]], "at least three points"),
        ([[0, 0, 4, 4, 2, 1e12]], "at least three points"),
        ([0, 0, 4, 0, 4, 4], "at least three points"),
    ],
)
def test_decode__tells_what_is_wrong(segmentation: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(segmentation, 2, 3)


def test_decode__a_cut_code_is_never_taken_for_whole() -> None:
    mask = np.random.default_rng(1).random((40, 60)) < 0.3
    text = encode(mask)["counts"]
    for length in range(0, len(text), 7):
        with pytest.raises(DataError, match="damaged"):
            decode({"size": [40, 60], "counts": text[:length]}, 40, 60)


def test_box__by_hand_and_as_pycocotools_has_it() -> None:
    assert box(CORNER) == (1.0, 0.0, 2.0, 2.0)
    assert box(np.zeros((4, 4), dtype=bool)) == (0.0, 0.0, 0.0, 0.0)
    for mask in masks():
        assert box(mask) == tuple(reference.toBbox(reference.encode(np.asfortranarray(mask, dtype=np.uint8))))


def test_encode__names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(DataError, match=r"masks need pycocotools: pip install 'mcbeit\[dense\]'"):
        encode(CORNER)
