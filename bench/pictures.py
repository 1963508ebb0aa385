"""Small pictures of images and their neighbours, for reports."""

from typing import Any

import numpy as np
from jaxtyping import Int64

from mcbeit.bench.features import Features
from mcbeit.bench.figures import picture_uri
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource

NUM_QUERIES, NUM_NEIGHBOURS = 10, 8
SIZE = 72  # pixels
WHOLE = Preprocess(image_size=SIZE, resize="squash", crop_fraction=1.0)


def neighbour_pictures(
    queries: ImageSource,
    gallery: ImageSource,
    asked: Features,
    found: Features,
    nearest: Int64[np.ndarray, "query neighbour"],
    seed: int,
) -> list[dict[str, Any]]:
    """Some queries with the nearest other images: for each its name, its class and a picture."""
    rng = np.random.default_rng(seed)
    asked_images, gallery_images = asked.images(queries), found.images(gallery)
    names = found.names
    rows = np.sort(rng.choice(len(nearest), size=min(NUM_QUERIES, len(nearest)), replace=False))
    return [
        {
            "query": _entry(queries, asked, asked_images, int(row)),
            "neighbours": [
                _entry(gallery, found, gallery_images, one)
                for one in [one for one in nearest[row].tolist() if names[one] != asked.names[row]][:NUM_NEIGHBOURS]
            ],
        }
        for row in rows
    ]


def _entry(source: ImageSource, features: Features, images: Int64[np.ndarray, " image"], row: int) -> dict[str, Any]:
    pixels = WHOLE.pixels(source.read(int(images[row])))
    label = None if features.labels is None else features.classes[int(features.labels[row])]
    return {"name": features.names[row], "class": label, "picture": picture_uri(pixels, SIZE)}
