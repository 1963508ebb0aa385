"""Patch features as colours."""

import numpy as np
import pytest

from mcbeit.errors import PictureError
from mcbeit.viz.pca import pca_colours


def two_parts(*, images: int = 2, seed: int = 0) -> np.ndarray:
    """A square of one kind of patch in the middle of another: 8 x 8 patches of 12 numbers, with noise."""
    rng = np.random.default_rng(seed)
    inside, outside = rng.standard_normal((2, 12))
    features = np.broadcast_to(outside, (images, 8, 8, 12)).copy()
    features[:, 2:6, 2:6] = inside
    return (features + 0.05 * rng.standard_normal(features.shape)).astype(np.float32)


def test_pca_colours__are_the_same_for_like_patches_of_all_images() -> None:
    found = pca_colours(two_parts())
    assert found.colours.shape == (2, 8, 8, 3)
    assert found.colours.min() == 0
    assert found.colours.max() == 1
    red = found.colours[..., 0]
    inside, outside = red[:, 2:6, 2:6], np.concatenate([red[:, :2].ravel(), red[:, 6:].ravel()])
    assert abs(inside.mean() - outside.mean()) > 0.8
    assert inside.std() < 0.1
    assert found.is_shown.all()


def test_pca_colours__the_first_component_holds_the_most() -> None:
    first, second, third = pca_colours(two_parts()).explained
    assert first > 0.9
    assert first > second >= third > 0


def test_pca_colours__agree_with_the_singular_vectors() -> None:
    features = np.random.default_rng(0).standard_normal((1, 6, 5, 7)).astype(np.float32) * np.arange(1, 8)
    features = features.astype(np.float32)
    tokens = features.reshape(30, 7).astype(np.float64)
    centred = tokens - tokens.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(pca_colours(features).explained, (values**2 / (values**2).sum())[:3], rtol=1e-9)


def test_pca_colours__one_odd_patch_does_not_set_the_scale() -> None:
    features = two_parts(images=4)
    plain = pca_colours(features).colours[..., 0]
    features[0, 0, 0] *= 3
    assert np.abs(pca_colours(features).colours[1:, ..., 0] - plain[1:]).max() < 0.3


def test_pca_colours__foreground_is_what_does_not_reach_the_border() -> None:
    found = pca_colours(two_parts(), "auto")
    wanted = np.zeros((2, 8, 8), dtype=bool)
    wanted[:, 2:6, 2:6] = True
    np.testing.assert_array_equal(found.is_shown, wanted)
    assert (found.colours[~wanted] == 0).all()
    assert found.colours[wanted].max() == 1


def test_pca_colours__either_side() -> None:
    positive, negative = (pca_colours(two_parts(), side).is_shown for side in ("positive", "negative"))
    np.testing.assert_array_equal(positive, ~negative)


def test_pca_colours__too_few_patches() -> None:
    with pytest.raises(PictureError, match="1 patches of 12 numbers are too few for a PCA; name more images"):
        pca_colours(two_parts()[:1, :1, :1])


def test_pca_colours__patches_that_are_all_alike() -> None:
    with pytest.raises(PictureError, match="all patches have the same features"):
        pca_colours(np.full((1, 4, 4, 8), 0.1, np.float32))
