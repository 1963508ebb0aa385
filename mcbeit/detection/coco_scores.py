"""COCO's scores of boxes and of masks: average precision and recall, by pycocotools or by faster-coco-eval.

The first is the official one; the second is several times as fast, and gives the same numbers to six digits. Besides
`mcbeit/detection/rle.py` this is the only module that may import them, and it does so when it is used.
"""

import contextlib
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mcbeit.detection.rle import box, decode
from mcbeit.errors import DataError
from mcbeit.sources import location

Kind = Literal["bbox", "segm"]
Backend = Literal["pycocotools", "fast"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_DETECTIONS = [1, 10, 100]  # per image; pycocotools gives an AP of -1 if 100 is not among them
STATS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
MODULES: dict[Backend, str] = {"pycocotools": "pycocotools", "fast": "faster-coco-eval"}


class Scores(NamedTuple):
    """Of boxes or of masks. None where the annotations have nothing to find."""

    stats: dict[str, float | None]  # COCO's twelve, in [0, 1], by STATS
    by_class: dict[str, float | None]  # AP by the name of the category


def score(
    annotations: str | Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    backend: Backend = "pycocotools",
) -> dict[Kind, Scores]:
    """The scores of results, entries as `CocoResults` has them, by an annotation file or by its content.

    `image_ids` are the images that were looked at, by default all of the file; entries of others do not count. Raises
    DataError if the annotations or the results cannot be scored, or if the backend is not installed.
    """
    truth = _complete(_content(annotations))
    known = {image["id"] for image in truth["images"]}
    wanted = sorted(known if image_ids is None else set(image_ids))
    if strange := [number for number in wanted if number not in known]:
        raise DataError(f"{len(strange)} images are not in the annotations, such as {strange[0]}")
    entries = [dict(entry) for entry in results]
    if lost := [entry for entry in entries if entry["image_id"] not in known]:
        raise DataError(
            f"{len(lost)} detections are of images that are not in the annotations, such as {lost[0]['image_id']}"
        )
    return {kind: _score(truth, entries, kind, wanted, backend) for kind in KINDS}


def require(backend: Backend) -> None:
    """Raises DataError if the backend is not installed."""
    _import(backend)


def _score(
    truth: dict[str, Any], entries: list[dict[str, Any]], kind: Kind, image_ids: list[int], backend: Backend
) -> Scores:
    coco_class, evaluation_class = _import(backend)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = coco_class()
        expected.dataset = truth
        expected.createIndex()
        evaluation = evaluation_class(expected, _found(coco_class, expected, entries, kind), kind)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [overlap, recall, class]: of all sizes, 100 detections
    by_class = {names[number]: _mean(precision[:, :, k]) for k, number in enumerate(evaluation.params.catIds)}
    return Scores({name: _some(value) for name, value in zip(STATS, evaluation.stats, strict=False)}, by_class)


def _found(coco_class: Any, expected: Any, entries: list[dict[str, Any]], kind: Kind) -> Any:
    """The results as the backend has them; for masks without boxes, or the area of a box would count as the mask's."""
    if entries:
        key = "bbox" if kind == "segm" else "segmentation"
        return expected.loadRes([{name: value for name, value in entry.items() if name != key} for entry in entries])
    nothing = coco_class()  # on which pycocotools' loadRes stumbles
    nothing.dataset = {"images": expected.dataset["images"], "categories": expected.dataset["categories"],
                       "annotations": []}  # fmt: skip
    nothing.createIndex()
    return nothing


def _content(annotations: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(annotations, Mapping):
        return annotations
    try:
        return json.loads(location.read_bytes(annotations))
    except (OSError, ValueError) as error:
        raise DataError(f"the annotations '{annotations}' cannot be read: {error}") from error


def _complete(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the backends need: ids from 1, as they take 0 for nothing; area, box and crowd where a file has none."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    shapeless = [entry for entry in content["annotations"] if not entry.get("segmentation")]
    if shapeless:
        raise DataError(
            f"{len(shapeless)} annotations have no segmentation, such as {shapeless[0].get('id')}: masks cannot be "
            "scored"
        )
    annotations = []
    for number, entry in enumerate(content["annotations"], start=1):
        filled = {"iscrowd": 0, **entry, "id": number}
        if "area" not in filled or "bbox" not in filled:
            mask = decode(entry["segmentation"], *sizes[entry["image_id"]])
            filled = {"area": float(mask.sum()), "bbox": list(box(mask)), **filled}
        annotations.append(filled)
    return {"images": content["images"], "categories": content["categories"], "annotations": annotations}


def _import(backend: Backend) -> tuple[Any, Any]:
    try:
        if backend == "fast":
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        from pycocotools.coco import COCO as OfficialCOCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(f"COCO's scores need {MODULES[backend]}: pip install 'mcbeit[dense]'") from error
    return OfficialCOCO, COCOeval


def _mean(precision: np.ndarray) -> float | None:
    """-1 is where a class has nothing to find."""
    return float(precision[precision > -1].mean()) if (precision > -1).any() else None


def _some(value: float) -> float | None:
    return None if value == -1 else float(value)
