"""Embeddings without images, in clusters, of the encoder that ships as a fake."""

import numpy as np

from mcbeit.embeddings import Embeddings
from mcbeit.encoder import unit_length
from mcbeit.fake_encoder import FakeEncoder


def clustered(count: int, dim: int = 16, *, seed: int = 0) -> np.ndarray:
    """Unit vectors around a tenth as many centres, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((count // 10 + 1, dim))
    noisy = centres[rng.integers(len(centres), size=count)] + 0.3 * rng.standard_normal((count, dim))
    return unit_length(noisy.astype(np.float32))


def make_embeddings(count: int, dim: int = 16, *, seed: int = 0) -> Embeddings:
    """Vectors with ids `0.png`, `1.png` and so on, and labels `even` and `odd`."""
    labels = np.arange(count, dtype=np.int64) % 2
    ids = [f"{number}.png" for number in range(count)]
    return Embeddings(ids, ids, clustered(count, dim, seed=seed), FakeEncoder(dim=dim).spec, labels, ["even", "odd"])
