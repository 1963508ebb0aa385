"""Revisited Oxford and Paris (Radenović et al., 2018): buildings, with right, hard and junk images for each query.

The layout is that of the paper: `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, and all images in `jpg/`. Nothing in the
pickle is executed.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Float

from mcbeit.bench.retrieval_set import Indices, Relevance, RetrievalSet
from mcbeit.errors import DataError
from mcbeit.plain_pickle import read_plain_pickle
from mcbeit.sources import FileSource, location
from mcbeit.sources.cropped import CroppedSource
from mcbeit.sources.files import open_named

PROTOCOLS = {  # what is right, and what is junk
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
EXPECTED = "gnd_roxford5k.pkl or gnd_rparis6k.pkl, and jpg/NAME.jpg for each name in it"


def open_revisited(folder: str) -> RetrievalSet:
    """The queries, cropped to their boxes, the gallery, and what is right by each of PROTOCOLS.

    Raises DataError if the folder has another layout, or if its ground truth does not fit.
    """
    file = _ground_truth_file(folder)
    truth = read_plain_pickle(file)
    try:
        if not isinstance(truth, dict):
            raise ValueError(f"it holds a {type(truth).__name__}")
        names, query_names, answers = _file_names(truth["imlist"]), _file_names(truth["qimlist"]), list(truth["gnd"])
        if len(answers) != len(query_names):
            raise ValueError(f"it names {len(query_names)} queries and has answers for {len(answers)}")
        boxes = np.stack([_box(answer["bbx"]) for answer in answers])
        relevance = {protocol: _relevance(answers, protocol, len(names)) for protocol in PROTOCOLS}
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(
            f"'{file}' is no ground truth of revisited Oxford or Paris: {reason}; expected a dict of imlist, qimlist "
            "and gnd, with easy, hard, junk and bbx for each query"
        ) from error
    queries, gallery = _images(folder, query_names, file), _images(folder, names, file)
    return RetrievalSet(CroppedSource(queries, boxes), gallery, relevance, "revisited")


def ground_truth_files(folder: str) -> list[str]:
    """The names of what looks like a ground truth of this kind."""
    return [name for name in location.names(folder) if name.startswith("gnd_") and name.endswith(".pkl")]


def _ground_truth_file(folder: str) -> str:
    found = ground_truth_files(folder)
    if len(found) != 1 or not location.is_folder(location.join(folder, "jpg")):
        raise DataError(
            f"'{folder}' is not laid out as revisited Oxford or Paris: expected {EXPECTED}; {location.describe(folder)}"
        )
    return location.join(folder, found[0])


def _images(folder: str, names: list[str], file: str) -> FileSource:
    return open_named(location.join(folder, "jpg"), [f"{name}.jpg" for name in names], where=file)


def _file_names(names: Any) -> list[str]:
    """Raises ValueError unless they are names of files in one folder."""
    found = list(names)
    wrong = [name for name in found if not isinstance(name, str) or PurePath(name).name != name]
    if wrong or not found:
        raise ValueError(f"{wrong[0]!r:.100} is no name of a file" if wrong else "it names no image")
    return found


def _relevance(answers: list[Any], protocol: str, num_images: int) -> Relevance:
    right, junk = PROTOCOLS[protocol]
    return Relevance(
        [_indices(answer, right, num_images) for answer in answers],
        [_indices(answer, junk, num_images) for answer in answers],
    )


def _indices(answer: Mapping[str, Any], parts: tuple[str, ...], num_images: int) -> Indices:
    return np.unique(np.concatenate([_numbers(answer[part], part, num_images) for part in parts]))


def _numbers(values: Any, part: str, num_images: int) -> Indices:
    """Raises ValueError unless they are numbers of images."""
    found = np.asarray(values).reshape(-1)
    if len(found) and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= num_images):
        raise ValueError(f"{part} of a query is {found.tolist()!r:.100}, not numbers of {num_images} images")
    return found.astype(np.int64)


def _box(values: Any) -> Float[np.ndarray, " 4"]:
    box = np.asarray(values, dtype=np.float64).reshape(-1)
    if box.shape != (4,) or not np.isfinite(box).all() or not (box[:2] < box[2:]).all():
        raise ValueError(f"bbx of a query is {box.tolist()!r:.100}, not left, top, right and bottom")
    return box
