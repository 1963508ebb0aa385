"""What the features of a run are worth beside two baselines: raw pixels, and the same backbone before its training.

All three are judged by the functions of `mcbeit.probe` on the same held-out images.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from pydantic import model_validator
from torch import Tensor

from mcbeit.config import Config, Seed
from mcbeit.data import DataConfig
from mcbeit.device import Precision
from mcbeit.image_files import COLOURS
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.probe import (
    EVAL_BATCH,
    EvalConfig,
    OnlineProbe,
    knn_accuracy,
    linear_accuracy,
    mean_pooled,
    open_labelled,
    recall_at,
    standardise,
)
from mcbeit.sources import SourceKind
from mcbeit.vit import ModelConfig, VisionTransformer

LAYER = "mean of the patch tokens after the final norm"
MARGINS = {"knn": 0.08, "linear": 0.05}  # what pretraining must add to the random backbone's accuracy
PIXEL_SIZE = 32  # larger images are averaged down to this for the raw-pixel baseline
CPU_BATCH = 32  # activations of more images do not fit into the caches


class ProbeConfig(Config):
    """What weights that come without a run are judged on."""

    seed: Seed = 0
    data: DataConfig = DataConfig()
    preprocess: Preprocess = Preprocess()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _channels_fit(self) -> "ProbeConfig":
        self.data.check_channels(self.preprocess.mean, section="preprocess")
        return self


class Features(NamedTuple):
    """The features of one kind, standardised with the gallery's statistics."""

    gallery: Float[Tensor, "image dim"]
    queries: Float[Tensor, "query dim"]


@dataclass(frozen=True)
class Row:
    """What one kind of feature scores: top-1 accuracies, and recall of retrieval."""

    name: str
    dim: int
    knn: float
    linear: float
    recall: tuple[float, ...]  # at 1, 5 and 10: an image of the same class among the nearest


@dataclass(frozen=True)
class Comparison:
    """The rows `pixels`, `random` and `pretrained`, and what they were measured on."""

    rows: list[Row]
    gallery: str
    queries: str
    num_gallery: int
    num_queries: int
    num_skipped: int
    num_classes: int
    seed: int
    step: int | None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Comparison":
        """Undo `dataclasses.asdict`."""
        return cls(**{**values, "rows": [Row(**{**row, "recall": tuple(row["recall"])}) for row in values["rows"]]})

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def standard_error(self, accuracy: float) -> float:
        """Of one accuracy, binomial: what another draw of the queries would change."""
        return math.sqrt(accuracy * (1 - accuracy) / self.num_queries)

    def gain(self, metric: str, name: str = "pretrained") -> float:
        """The row's accuracy minus the random backbone's."""
        return float(getattr(self.row(name), metric) - getattr(self.row("random"), metric))

    @property
    def is_met(self) -> bool:
        """Whether pretraining adds at least MARGINS."""
        return all(self.gain(metric) >= margin for metric, margin in MARGINS.items())


def open_probe(config: PretrainConfig | ProbeConfig) -> OnlineProbe | None:
    """The labelled images that the run names; None if it names none and its own images have no labels."""
    if not config.eval.names_labels and config.data.open().labels is None:
        return None
    options = config.eval.model_copy(update={"kind": _kind(config)})
    return OnlineProbe(options, config.data, config.preprocess, config.seed)


def class_names(config: PretrainConfig) -> list[str]:
    """The names of the classes of the gallery."""
    location = config.eval.gallery or config.data.required_source()
    return open_labelled(location, _kind(config), config.data.channels).classes


def _kind(config: PretrainConfig | ProbeConfig) -> SourceKind:
    return config.eval.kind if config.eval.names_labels else config.data.kind


def random_backbone(model: ModelConfig, image_size: int, seed: int, channels: int = COLOURS) -> VisionTransformer:
    """The backbone before any training, by the init of its run: a weaker one would flatter the pretraining."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(model, image_size=image_size, channels=channels)


def backbone_features(
    backbone: VisionTransformer, probe: OnlineProbe, preprocess: Preprocess, precision: Precision
) -> Features:
    """Mean-pooled features of both sets."""
    size = CPU_BATCH if backbone.cls_token.device.type == "cpu" else EVAL_BATCH
    gallery, queries = (
        mean_pooled(backbone, [part for batch in images.pixels for part in batch.split(size)], preprocess, precision)
        for images in (probe.gallery, probe.queries)
    )
    return Features(*standardise(gallery, queries))


def pixel_features(probe: OnlineProbe) -> Features:
    """The preprocessed images themselves, at most PIXEL_SIZE high; pixels that are the same all over the gallery and
    the two further channels of grey images are left out.
    """
    gallery, queries = (torch.cat([_small(batch) for batch in s.pixels]) for s in (probe.gallery, probe.queries))
    if all(bool((images == images[:, :1]).all()) for images in (gallery, queries)):
        gallery, queries = gallery[:, :1], queries[:, :1]
    gallery, queries = gallery.flatten(1), queries.flatten(1)
    varies = gallery.amin(dim=0) < gallery.amax(dim=0)
    if bool(varies.any()):
        gallery, queries = gallery[:, varies], queries[:, varies]
    return Features(*standardise(gallery, queries))


def _small(pixels: Shaped[Tensor, "image height width channel"]) -> Float[Tensor, "image channel rows columns"]:
    images = pixels.permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(images, PIXEL_SIZE) if images.shape[2] > PIXEL_SIZE else images


def score(name: str, features: Features, probe: OnlineProbe) -> Row:
    """k-NN, linear probe and recall on one kind of feature."""
    sets = (features.gallery, probe.gallery.labels, features.queries, probe.queries.labels)
    return Row(name, features.gallery.shape[1], knn_accuracy(*sets), linear_accuracy(*sets), tuple(recall_at(*sets)))


def compare(
    config: PretrainConfig | ProbeConfig, probe: OnlineProbe, features: dict[str, Features], *, step: int | None
) -> Comparison:
    """Judge each kind of features; `step` counts the steps that the pretrained ones have had, if that is known."""
    gallery = _name(config.eval.gallery or config.data.required_source())
    return Comparison(
        rows=[score(name, found, probe) for name, found in features.items()],
        gallery=gallery,
        queries=config.eval.queries or f"{gallery}, left out of the gallery",
        num_gallery=len(probe.gallery.labels),
        num_queries=len(probe.queries.labels),
        num_skipped=probe.gallery.num_skipped + probe.queries.num_skipped,
        num_classes=len(torch.unique(probe.gallery.labels)),
        seed=config.seed,
        step=step,
    )


def _name(location: str | list[str]) -> str:
    return location if isinstance(location, str) else ", ".join(location)
