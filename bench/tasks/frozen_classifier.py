"""Classifiers on frozen embeddings that are fitted once and asked about several sets of images."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from mcbeit.bench.features import Features
from mcbeit.bench.nearest import nearest
from mcbeit.bench.scaling import Vectors, fit_scaling
from mcbeit.bench.tasks.logreg import StrengthConfig, fit_chosen, strength_remarks
from mcbeit.bench.voting import vote
from mcbeit.encoder import unit_length
from mcbeit.errors import BenchError

Classes = Int64[np.ndarray, " class"]
Predicted = Int64[np.ndarray, " image"]


@runtime_checkable
class FrozenClassifier(Protocol):
    """What tells the class of a vector."""

    remarks: tuple[str, ...]

    def predict(self, vectors: Vectors, among: Classes | None = None) -> Predicted:
        """The classes of some images, out of all or of some classes."""
        ...


class NearestClassifier:
    """The weighted vote of the nearest training images, as the task `knn` has it.

    Of some classes: the nearest of their training images, so that there are always as many votes.
    """

    def __init__(self, train: Features, k: int, temperature: float, *, key: str) -> None:
        """Raises BenchError, which names `key`, if there are fewer images than neighbours."""
        if k > len(train.vectors):
            raise BenchError(f"{key}={k}, but there are only {len(train.vectors)} training images to search")
        assert train.labels is not None
        self.gallery, self.labels, self.num_classes = unit_length(train.vectors), train.labels, len(train.classes)
        self.k, self.temperature = k, temperature
        self.remarks: tuple[str, ...] = (f"k-NN, k={k}, T={temperature:g}",)

    def predict(self, vectors: Vectors, among: Classes | None = None) -> Predicted:
        """See `FrozenClassifier`."""
        gallery, labels = self.gallery, self.labels
        if among is not None:
            is_meant = np.isin(labels, among)
            gallery, labels = gallery[is_meant], labels[is_meant]
        k = min(self.k, len(gallery))
        found = nearest(unit_length(vectors), gallery, k)
        unknown = np.zeros(len(vectors), np.int64)  # the truth, which predictions do not depend on
        votes = vote(found.scores, labels[found.indices], unknown, (k,), (self.temperature,), self.num_classes)
        return votes.predicted[0, 0]


class LogisticClassifier:
    """Logistic regression, as the task `logreg` has it. Of some classes: the one with the largest logit."""

    def __init__(self, train: Features, config: StrengthConfig, seed: int, *, key: str) -> None:
        """Raises BenchError, which names `key`, if there are too few images to leave some out."""
        assert train.labels is not None
        self.scale = None if config.scaling == "none" else fit_scaling(train.vectors, config.scaling)
        chosen = fit_chosen(
            config, self._scaled(train.vectors), train.labels, len(train.classes), seed=seed, key=f"{key}.held_out"
        )
        self.fitted, self.remarks = chosen.classifier, ("logistic regression", *strength_remarks(config, chosen))

    def predict(self, vectors: Vectors, among: Classes | None = None) -> Predicted:
        """See `FrozenClassifier`."""
        scaled = self._scaled(vectors)
        return self.fitted.predict(scaled)[0] if among is None else among[self.fitted.among(among).predict(scaled)[0]]

    def _scaled(self, vectors: Vectors) -> Vectors:
        return vectors if self.scale is None else self.scale(vectors)
