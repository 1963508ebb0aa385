"""Masks of instances as COCO writes them: run-length codes and polygons, and their boxes.

A run-length code counts pixels down the columns, zeros and ones in turn, zeros first. Besides
`mcbeit/detection/coco_scores.py` this is the only module that may import pycocotools, and it does so when it is used.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from mcbeit.errors import DataError

FIRST_CHARACTER = 48  # of a compressed code: a character is five bits of a number, and whether more follow
MORE, NEGATIVE, BITS = 0x20, 0x10, 5
FARTHEST = 1e6  # pixels; pycocotools overflows far beyond
MISSING = "masks need pycocotools: pip install 'mcbeit[dense]'"


def import_masks() -> Any:
    """The module `pycocotools.mask`. Raises DataError that names the extra if it is not installed."""
    try:
        import pycocotools.mask
    except ImportError as error:
        raise DataError(MISSING) from error
    return pycocotools.mask


def encode(mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    """The compressed run-length code, ready for JSON: `{"size": [height, width], "counts": text}`."""
    code = import_masks().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The mask of a `segmentation`: a list of polygons, or a run-length code, compressed or not.

    Polygons are drawn by pycocotools. Codes are not: it reads on behind the end of a damaged one, and leaves the end of
    a short one undefined. Raises DataError for anything else, or for a code of another size.
    """
    if isinstance(segmentation, list):
        return _fill(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise DataError("a segmentation is a list of polygons, or a run-length code with 'size' and 'counts'")
    if list(segmentation["size"]) != [height, width]:
        raise DataError(
            f"a run-length code is of the size {segmentation['size']}, its image is {height} high and {width} wide"
        )
    counts = _read_counts(segmentation["counts"])
    if counts.size == 0 or counts.min() < 0 or counts.sum() != height * width:
        raise DataError(f"a run-length code is damaged: it does not count the {height * width} pixels of its image")
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(width, height).T


def box(mask: Bool[np.ndarray, "height width"]) -> tuple[float, float, float, float]:
    """The smallest box around the mask, as COCO writes it: left, top, width, height in pixels; zeros if it is empty."""
    if not mask.any():
        return 0.0, 0.0, 0.0, 0.0
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return (
        float(columns[0]),
        float(rows[0]),
        float(columns[-1] - columns[0] + 1),
        float(rows[-1] - rows[0] + 1),
    )


def _fill(polygons: list[Any], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The union of the polygons, each a list x, y, x, y, ... in pixels."""
    if not polygons or not all(_is_polygon(polygon) for polygon in polygons):
        raise DataError("a list of polygons holds lists of numbers x, y, x, y, ..., of at least three points each")
    masks = import_masks()
    code = masks.merge([masks.frPyObjects([list(polygon)], height, width)[0] for polygon in polygons])
    return decode(code, height, width)  # its own `decode` warns under numpy 2


def _is_polygon(polygon: Any) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        return False
    return all(isinstance(number, int | float) and abs(number) < FARTHEST for number in polygon)


def _read_counts(counts: Any) -> Int64[np.ndarray, " run"]:
    """The lengths of the runs; empty if they cannot be read."""
    if isinstance(counts, str | bytes):
        return _decompress(counts.encode() if isinstance(counts, str) else counts)
    if isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        return np.array(counts, dtype=np.int64)
    return np.empty(0, dtype=np.int64)


def _decompress(text: bytes) -> Int64[np.ndarray, " run"]:
    """Numbers of five bits a character, lowest first; from the fourth on they are differences to the last but one."""
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - FIRST_CHARACTER
    is_last = (codes & MORE) == 0
    if codes.size == 0 or not is_last[-1] or codes.min() < 0 or codes.max() >= 2 * MORE:
        return np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], is_last[:-1]]))
    lengths = np.diff(starts, append=codes.size)
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & (MORE - 1)) << (BITS * places), starts)
    values -= np.where(codes[is_last] & NEGATIVE, 1 << (BITS * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
