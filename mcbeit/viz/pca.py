"""Patch features as colours: the three directions in which they differ most are red, green and blue.

One PCA over the patches of all images together, so that the same colour means the same thing in each of them.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

from mcbeit.errors import PictureError

Foreground = Literal["none", "auto", "positive", "negative"]
Features = Float32[np.ndarray, "image row column dim"]
Tokens = Float64[np.ndarray, "patch dim"]

LOW, HIGH = 1.0, 99.0  # percentiles that become the darkest and the brightest: a few odd patches do not set the scale
NUM_COLOURS = 3


class PcaColours(NamedTuple):
    """The colours of all patches, in [0, 1], and which patches they are of."""

    colours: Float32[np.ndarray, "image row column 3"]
    is_shown: Bool[np.ndarray, "image row column"]  # the foreground, or everything
    explained: tuple[float, float, float]  # shares of the variance of the shown patches


def pca_colours(features: Features, foreground: Foreground = "none") -> PcaColours:
    """The colours of patch features. Raises PictureError if there are too few patches, or all are alike.

    With a foreground, the sign of the first component parts the patches, and a second PCA, of one side alone, gives
    the colours. `auto` takes the side that holds the smaller share of the patches along the borders of the images.
    """
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float64)
    is_shown = np.ones(len(tokens), dtype=bool)
    if foreground != "none":
        is_positive = _project(tokens, 1)[0][:, 0] > 0
        wanted = _side(is_positive.reshape(features.shape[:-1])) if foreground == "auto" else foreground
        is_shown = is_positive if wanted == "positive" else ~is_positive
    components, explained = _project(tokens[is_shown], NUM_COLOURS)
    low, high = np.percentile(components, [LOW, HIGH], axis=0)
    colours = np.zeros((len(tokens), NUM_COLOURS), np.float32)
    colours[is_shown] = np.clip((components - low) / np.where(high > low, high - low, 1), 0, 1)
    red, green, blue = explained.tolist()
    shape = features.shape[:-1]
    return PcaColours(colours.reshape(*shape, NUM_COLOURS), is_shown.reshape(shape), (red, green, blue))


def _project(tokens: Tokens, count: int) -> tuple[Float64[np.ndarray, "patch count"], Float64[np.ndarray, " count"]]:
    """The first principal components of each token, and their shares of the variance."""
    if len(tokens) <= count or tokens.shape[1] < count:
        raise PictureError(
            f"{len(tokens)} patches of {tokens.shape[1]} numbers are too few for a PCA; name more images, or take a "
            "larger image_size, which gives more patches"
        )
    centred = tokens - tokens.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(tokens))  # ascending
    variances, axes = variances[::-1].clip(0), axes[:, ::-1][:, :count]
    if variances[0] <= 1e-12 * max(float((tokens**2).mean()), np.finfo(np.float64).tiny):
        raise PictureError("all patches have the same features: there is nothing to colour")
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(count)] < 0, -1, 1)  # the sign is free
    return centred @ axes, variances[:count] / variances.sum()


def _side(is_positive: Bool[np.ndarray, "image row column"]) -> Foreground:
    inner = np.zeros(is_positive.shape[1:], dtype=bool)
    inner[1:-1, 1:-1] = True
    border = is_positive[:, ~inner]
    positive, negative = (border == sign for sign in (True, False))
    shares = [side.sum() / max(whole.sum(), 1) for side, whole in ((positive, is_positive), (negative, ~is_positive))]
    return "positive" if shares[0] <= shares[1] else "negative"
