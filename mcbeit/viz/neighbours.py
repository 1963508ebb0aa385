"""The images that are nearest to each of some images: among themselves, or in an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from mcbeit.encoder import Encoder, unit_length
from mcbeit.index import Hit, Index


class Neighbour(NamedTuple):
    """An image near to another. `score` is the cosine of their embeddings."""

    path: str
    score: float
    label: str | None = None


@runtime_checkable
class Neighbours(Protocol):
    """Who knows the neighbours of images."""

    described: str  # what they are looked for in

    def of(self, encoder: Encoder, images: Sequence[str]) -> list[list[Neighbour]]:
        """The nearest others of each image, the nearest first."""
        ...


class Among:
    """The images themselves: each has the others as neighbours."""

    described = "the images of this page"

    def __init__(self, num_neighbours: int) -> None:
        self.num_neighbours = num_neighbours

    def of(self, encoder: Encoder, images: Sequence[str]) -> list[list[Neighbour]]:
        """See `Neighbours`."""
        vectors = unit_length(encoder.embed(images))
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : min(self.num_neighbours, len(images) - 1)]
        return [[Neighbour(images[i], float(scores[row, i])) for i in near] for row, near in enumerate(order)]


class InIndex:
    """The images of an index, without the query itself."""

    def __init__(self, index: Index, num_neighbours: int) -> None:
        self.index, self.num_neighbours = index, num_neighbours
        self.described = f"the {len(index)} images of {index.path}"

    def of(self, encoder: Encoder, images: Sequence[str]) -> list[list[Neighbour]]:
        """See `Neighbours`. Raises VectorIndexError if the index is of another encoder."""
        self.index.check_encoder(encoder.spec)
        vectors = encoder.embed(images)
        found = self.index.search(vectors, self.num_neighbours + 1, fingerprint=encoder.spec.fingerprint)
        return [self._others(image, hits) for image, hits in zip(images, found, strict=True)]

    def _others(self, image: str, hits: Sequence[Hit]) -> list[Neighbour]:
        own = Path(image).resolve()
        near = [Neighbour(hit.path or hit.id, hit.score, hit.label) for hit in hits]
        return [one for one in near if Path(one.path).resolve() != own][: self.num_neighbours]
