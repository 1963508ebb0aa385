"""COCO's scores of boxes and of masks: average precision and recall, by pycocotools or by faster-coco-eval.

The first is the official one; the second is several times as fast, and gives the same numbers to six digits. Besides
`mcbeit/detection/rle.py` this is the only module that may import them, and it does so when it is used.
"""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from mcbeit.detection.ap_bootstrap import Matches, drawn_aps
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
    question = _question(annotations, results, image_ids)
    return {kind: _score(question, kind, backend) for kind in KINDS}


def bootstrap_ap(
    annotations: str | Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    *,
    image_ids: Iterable[int] | None = None,
    seed: int,
    draws: int = 200,
) -> dict[Kind, Float[np.ndarray, " draw"]]:
    """AP by pycocotools of sets of as many images, drawn with replacement; nan where one has nothing to find.

    Takes what `score` takes, and raises as it does.
    """
    question = _question(annotations, results, image_ids)
    num_images = len(question.image_ids)
    return {kind: drawn_aps(list(_matches(question, kind)), num_images, seed=seed, draws=draws) for kind in KINDS}


def require(backend: Backend) -> None:
    """Raises DataError if the backend is not installed."""
    _import(backend)


class _Question(NamedTuple):
    truth: dict[str, Any]
    entries: list[dict[str, Any]]
    image_ids: list[int]


def _question(
    annotations: str | Mapping[str, Any], results: Iterable[Mapping[str, Any]], image_ids: Iterable[int] | None
) -> _Question:
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
    return _Question(truth, entries, wanted)


def _evaluation(question: _Question, kind: Kind, backend: Backend) -> Any:
    """What the backend is asked to evaluate."""
    coco_class, evaluation_class = _import(backend)
    expected = coco_class()
    expected.dataset = question.truth
    expected.createIndex()
    evaluation = evaluation_class(expected, _found(coco_class, expected, question.entries, kind), kind)
    evaluation.params.maxDets = list(MAX_DETECTIONS)
    evaluation.params.imgIds = question.image_ids
    return evaluation


def _score(question: _Question, kind: Kind, backend: Backend) -> Scores:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(question, kind, backend)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = {category["id"]: category["name"] for category in question.truth["categories"]}
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [overlap, recall, class]: of all sizes, 100 detections
    by_class = {names[number]: _mean(precision[:, :, k]) for k, number in enumerate(evaluation.params.catIds)}
    return Scores({name: _some(value) for name, value in zip(STATS, evaluation.stats, strict=False)}, by_class)


def _matches(question: _Question, kind: Kind) -> Iterator[Matches]:
    """What of each class is right and wrong, of objects of all sizes and up to 100 detections per image."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(question, kind, "pycocotools")
        params = evaluation.params
        params.maxDets, params.areaRng, params.areaRngLbl = MAX_DETECTIONS[-1:], params.areaRng[:1], ["all"]
        evaluation.evaluate()
    count = len(params.imgIds)
    for start in range(0, len(params.catIds) * count, count):
        yield _matches_of(evaluation.evalImgs[start : start + count], len(params.iouThrs))


def _matches_of(images: Sequence[dict[str, Any] | None], num_overlaps: int) -> Matches:
    """Of pycocotools' entries of a class, one per image; None where it is neither marked nor found."""
    wanted, numbers, scores = np.zeros(len(images), np.int64), [np.zeros(0, np.int64)], [np.zeros(0)]
    is_matched, is_ignored = [np.zeros((num_overlaps, 0), bool)], [np.zeros((num_overlaps, 0), bool)]
    for number, image in enumerate(images):
        if image is not None:
            wanted[number] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
            numbers.append(np.full(len(image["dtScores"]), number))
            scores.append(np.asarray(image["dtScores"], np.float64))
            is_matched.append(np.asarray(image["dtMatches"]) > 0)
            is_ignored.append(np.asarray(image["dtIgnore"]) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")  # as pycocotools, which keeps the order of images
    matched, counts = np.concatenate(is_matched, axis=1)[:, order], ~np.concatenate(is_ignored, axis=1)[:, order]
    return Matches(matched & counts, ~matched & counts, np.concatenate(numbers)[order], wanted)


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
