"""Retrieval of one style by another: the same emoji, drawn by other hands, among all that a style has.

Raw pixels, the backbone before its training, the trained one by several layers and poolings, and EfficientNet-Lite0,
which has seen ImageNet and its labels, side by side. Queries are the emoji of `val`, which the run has not seen; the
gallery is the whole other style. A hit is the same emoji among the k nearest by cosine.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32

from mcbeit.bench.run_report.baselines import random_backbone
from mcbeit.bodies import BeitBody
from mcbeit.body_loading import LoadedBody, load_body
from mcbeit.embedding_model import EmbeddingModel
from mcbeit.encoder import EncoderConfig, Pooling, load_encoder, unit_length
from mcbeit.errors import DataError
from mcbeit.network_weights import PACKAGED_MODULE, PACKAGED_NETWORK
from mcbeit.preprocess import Preprocess

PAIRS = (("fluent", "noto"), ("fluent", "twemoji"), ("noto", "twemoji"))  # query style, gallery style
COUNTS = (1, 5, 10)
PIXELS = Preprocess(image_size=32, resize="squash", crop_fraction=1.0)
BATCH_SIZE = 64
Vectors = Float32[np.ndarray, "image dim"]


class Scores(NamedTuple):
    """Recall at each of COUNTS, and the mean reciprocal rank."""

    recall: tuple[float, ...]
    mean_reciprocal_rank: float


class Pictures(NamedTuple):
    """One style: every picture, whose emoji it is, and whether it is held out."""

    paths: list[Path]
    emoji: list[str]
    is_held_out: np.ndarray


def read_styles(folder: Path) -> dict[str, Pictures]:
    """The data set `emoji-styles`. Raises DataError if it is not there."""
    found = {}
    for style in sorted({style for pair in PAIRS for style in pair}):
        paths = sorted(folder.glob(f"*/{style}/*.png"), key=lambda path: path.stem)
        if not paths:
            raise DataError(f"there are no pictures at '{folder}/*/{style}'; mcbeit data prepare emoji-styles {folder}")
        held_out = np.array([path.parts[-3] == "val" for path in paths])
        found[style] = Pictures(paths, [path.stem for path in paths], held_out)
    return found


def score(
    queries: Float[np.ndarray, "query dim"],
    query_keys: Sequence[str],
    gallery: Float[np.ndarray, "image dim"],
    gallery_keys: Sequence[str],
) -> Scores:
    """How well each query finds the one picture of the gallery with its key, by cosine. Ties count against it."""
    place = {key: i for i, key in enumerate(gallery_keys)}
    scores = unit_length(queries.astype(np.float32)) @ unit_length(gallery.astype(np.float32)).T
    wanted = scores[np.arange(len(queries)), [place[key] for key in query_keys]]
    ranks = (scores >= wanted[:, None]).sum(axis=1)
    return Scores(tuple(float((ranks <= count).mean()) for count in COUNTS), float((1 / ranks).mean()))


def compare(vectors: Mapping[str, Vectors], styles: Mapping[str, Pictures]) -> list[Scores]:
    """The scores of one kind of vectors, given by style, for each of PAIRS."""
    found = []
    for query, gallery in PAIRS:
        asked = styles[query].is_held_out
        keys = [key for key, is_asked in zip(styles[query].emoji, asked, strict=True) if is_asked]
        found.append(score(vectors[query][asked], keys, vectors[gallery], styles[gallery].emoji))
    return found


def pixel_vectors(paths: Sequence[Path]) -> Vectors:
    """The images at 32 x 32, less their mean."""
    images = np.stack([PIXELS.pixels(path) for path in paths]).reshape(len(paths), -1).astype(np.float32) / 255
    return images - images.mean(axis=0)


def sweep(loaded: LoadedBody, layers: Sequence[int], paths: Sequence[Path]) -> dict[str, Vectors]:
    """Vectors by every pooling of the tokens of some layers, all from one pass over the images."""
    poolings = [kind for kind in get_args(Pooling) if kind != "head"]
    found: dict[str, list[np.ndarray]] = {f"layer {layer}, {kind}": [] for layer in layers for kind in poolings}
    models = {
        kind: EmbeddingModel(
            loaded.body, loaded.preprocess, pooling=kind, layer=layers[0], final_norm=True, extra_layers=layers[1:]
        ).eval()
        for kind in poolings
    }
    for start in range(0, len(paths), BATCH_SIZE):
        pixels = np.stack([loaded.preprocess.pixels(path) for path in paths[start : start + BATCH_SIZE]])
        with torch.inference_mode():
            tokens = models[poolings[0]].tokens(torch.from_numpy(pixels))
            for layer, one in zip(layers, tokens, strict=True):
                for kind in poolings:
                    found[f"layer {layer}, {kind}"].append(models[kind].embedding(one).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def before_training(run: Path, trained: LoadedBody) -> LoadedBody:
    """The backbone of a run as it was before step 0."""
    from mcbeit.bench.run_report.trained import read_config

    config = read_config(run)
    model = random_backbone(config.model, trained.preprocess.image_size, config.seed, config.data.channels)
    return LoadedBody(BeitBody(model.eval()), trained.preprocess, "random backbone", trained.timm)


def rows(run: Path, styles: Mapping[str, Pictures]) -> Iterator[tuple[str, list[Scores]]]:
    """Each kind of vectors with its scores, the simplest first."""
    yield "raw pixels, 32 x 32", compare({style: pixel_vectors(one.paths) for style, one in styles.items()}, styles)
    trained = load_body(run, EncoderConfig())
    depth = trained.body.num_layers
    layers = sorted({depth // 2, 3 * depth // 4, depth})
    for title, loaded, kept in (
        ("random backbone", before_training(run, trained), [f"layer {depth}, mean"]),
        ("pretrained", trained, None),
    ):
        by_style = {style: sweep(loaded, layers, one.paths) for style, one in styles.items()}
        for name in kept or next(iter(by_style.values())):
            yield f"{title}, {name}", compare({style: found[name] for style, found in by_style.items()}, styles)
    if importlib.util.find_spec(PACKAGED_MODULE) is not None:
        encoder = load_encoder(f"timm:{PACKAGED_NETWORK}")
        yield (
            "EfficientNet-Lite0 (ImageNet, with labels)",
            compare({style: encoder.embed(one.paths) for style, one in styles.items()}, styles),
        )
