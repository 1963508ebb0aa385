"""Retrieval: does an image find the others that show the same, by cosine.

Folders of queries and a gallery, or one set in which each image is searched for among all others (CUB-200, Stanford
Online Products), are judged by recall@k, MRR, mAP, MAP@R and R-precision; revisited Oxford and Paris by their own
protocol, easy, medium and hard.
"""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int64
from pydantic import Field

from mcbeit.bench.data import BenchData
from mcbeit.bench.model import BenchModel
from mcbeit.bench.nearest import nearest
from mcbeit.bench.pictures import neighbour_pictures
from mcbeit.bench.result import Metric, mean_of
from mcbeit.bench.retrieval_metrics import (
    average_precision,
    average_precision_at_r,
    precision_at,
    r_precision,
    recall_at,
    reciprocal_rank,
    trapezoidal_average_precision,
)
from mcbeit.bench.retrieval_set import Ranked, Relevance, judge
from mcbeit.bench.scaling import Scaling, scaled
from mcbeit.bench.tasks.task import BenchTask, Outcome, TaskConfig

REVISITED = "revisited"
CUTS = (1, 5, 10)  # of mP@k in revisited Oxford and Paris
WHOLE_RANKING = 20_000  # gallery images up to which every query ranks all of them


class RetrievalConfig(TaskConfig):
    """The settings of `retrieval`."""

    recall: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10, 100), min_length=1)
    scaling: Scaling = "none"  # by the statistics of the gallery, before vectors are made unit


def run(model: BenchModel, data: BenchData, config: RetrievalConfig) -> Outcome:
    """Search for every query in the gallery."""
    images = data.retrieval()
    asked = model.features(data, "queries")
    found = asked if images.queries is images.gallery else model.features(data, "gallery")
    before = time.monotonic()
    gallery, queries = scaled(found.vectors, asked.vectors, config.scaling, unit=True)
    asked_images, gallery_images = asked.images(images.queries), found.images(images.gallery)
    relevance = {name: _of_rows(one, asked_images) for name, one in images.relevance.items()}
    depth = _depth(relevance, len(gallery), max(config.recall))
    ranking = gallery_images[nearest(queries, gallery, depth).indices]
    ranked = {name: judge(ranking, one, len(gallery)) for name, one in relevance.items()}
    is_whole = depth == len(gallery)
    if images.layout == REVISITED:
        scores = {f"{key}, {name}": values for name, one in ranked.items() for key, values in _revisited(one).items()}
        primary = "mAP, medium"
    else:
        several = len(ranked) > 1
        scores = {
            f"{key}, {name}" if several else key: values
            for name, one in ranked.items()
            for key, values in _general(one, config.recall, len(gallery), is_whole=is_whole).items()
        }
        primary = next(iter(scores))
    metrics: dict[str, Metric] = {name: mean_of(values, seed=config.seed) for name, values in scores.items()}
    outcome = Outcome(
        primary=primary,
        metrics=metrics,
        used={},
        remarks=() if is_whole else (f"mAP needs whole rankings, which are made of at most {WHOLE_RANKING:,} images",),
        seconds={"search": time.monotonic() - before},
        pictures=neighbour_pictures(
            images.queries, images.gallery, asked, found, _places(ranking, gallery_images), config.seed
        ),
    )
    outcome.note_features(queries=asked, gallery=found)
    return outcome


def _depth(relevance: Mapping[str, Relevance], num_searched: int, most_counted: int) -> int:
    """How many neighbours are needed: all, or as many as any metric but mAP looks at, beside junk."""
    if num_searched <= WHOLE_RANKING:
        return num_searched
    junk = max(len(one) for relevant in relevance.values() for one in relevant.junk)
    wanted = max(int(one.num_relevant.max()) for one in relevance.values())
    return min(num_searched, max(most_counted, wanted) + junk)


def _of_rows(relevance: Relevance, images: Int64[np.ndarray, " row"]) -> Relevance:
    """That of the queries that can be read."""
    return Relevance([relevance.relevant[i] for i in images], [relevance.junk[i] for i in images])


def _general(
    ranked: Ranked, counts: tuple[int, ...], num_searched: int, *, is_whole: bool
) -> dict[str, Float[np.ndarray, " query"]]:
    usable = [count for count in sorted(set(counts)) if count <= num_searched]
    recalls = recall_at(*ranked, usable)
    scores = {f"recall@{count}": recalls[:, i] for i, count in enumerate(usable)}
    scores |= {"MRR": reciprocal_rank(*ranked)}
    scores |= {"MAP@R": average_precision_at_r(*ranked), "R-precision": r_precision(*ranked)}
    return scores | ({"mAP": average_precision(*ranked)} if is_whole else {})


def _revisited(ranked: Ranked) -> dict[str, Float[np.ndarray, " query"]]:
    precisions = precision_at(*ranked, CUTS)
    return {"mAP": trapezoidal_average_precision(*ranked)} | {f"mP@{k}": precisions[:, i] for i, k in enumerate(CUTS)}


def _places(
    ranking: Int64[np.ndarray, "query rank"], images: Int64[np.ndarray, " row"]
) -> Int64[np.ndarray, "query rank"]:
    """The rows of the gallery that images of a ranking are in."""
    return np.searchsorted(images, ranking)


PRESETS: dict[Any, dict[str, Any]] = {"smoke": {}, "short": {}, "paper": {}}
TASK = BenchTask(
    "retrieval", 1, "instance or class retrieval by cosine", "embedding", "retrieval", RetrievalConfig, PRESETS, run
)
