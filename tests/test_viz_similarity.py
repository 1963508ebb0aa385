"""One patch against all."""

import numpy as np
import pytest

from mcbeit.errors import PictureError
from mcbeit.viz.similarity import Patch, parse_place, patch_at, similarity_map


def test_parse_place() -> None:
    assert parse_place("0.25,1") == (0.25, 1.0)


@pytest.mark.parametrize("text", ["", "0.5", "0.5,0.5,0.5", "a,b", "1.2,0", "0,-0.1", "nan,0", "100,200"])
def test_parse_place__mistakes(text: str) -> None:
    with pytest.raises(PictureError, match="is no place in an image; give X,Y as fractions"):
        parse_place(text)


@pytest.mark.parametrize(
    ("place", "patch"), [((0, 0), (0, 0)), ((1, 1), (3, 7)), ((0.5, 0.25), (1, 4)), ((0.99, 0), (0, 7))]
)
def test_patch_at__x_counts_columns_and_y_rows(place: tuple[float, float], patch: tuple[int, int]) -> None:
    assert patch_at((float(place[0]), float(place[1])), (4, 8)) == Patch(*patch)


def test_similarity_map__is_the_cosine_whatever_the_length() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    features[1, 2, 3] = 7 * features[0, 1, 2]
    found = similarity_map(features, Patch(1, 2))
    assert found.values.shape == (2, 3, 4)
    assert found.values[0, 1, 2] == pytest.approx(1)
    assert found.best[1] == Patch(2, 3)
    assert found.best[0] != Patch(1, 2)
    own, other = features[0, 1, 2], features[0, 0, 0]
    wanted = own @ other / (np.linalg.norm(own) * np.linalg.norm(other))
    assert found.values[0, 0, 0] == pytest.approx(wanted, abs=1e-6)


def test_similarity_map__the_patch_itself_does_not_set_the_scale() -> None:
    features = np.zeros((1, 2, 2, 2), np.float32)
    features[..., 0] = 1
    features[0, 0, 0] = (0, 1)
    found = similarity_map(features, Patch(0, 0))
    assert found.high == 0


def test_similarity_map__one_patch_alone() -> None:
    found = similarity_map(np.ones((1, 1, 1, 3), np.float32), Patch(0, 0))
    assert found.low == found.high == pytest.approx(1)
