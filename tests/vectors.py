"""Embeddings without images, in clusters, of the encoder that ships as a fake."""

from pathlib import Path

import numpy as np

from mcbeit.embedding_files import write_embeddings
from mcbeit.embeddings import Block, Description, Embeddings
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


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write them as `mcbeit embed` does."""
    count = len(embeddings.ids)
    description = Description(
        what="embedding",
        num_rows=count,
        row_shape=embeddings.vectors.shape[1:],
        spec=embeddings.spec,
        place="photos",
        source={"images": count},
        num_unreadable=0,
        unreadable="drop",
        classes=embeddings.classes,
    )
    rows = (embeddings.ids, embeddings.paths, embeddings.labels, embeddings.vectors, np.ones(count, bool))
    write_embeddings(path, description, [Block(*rows)])
