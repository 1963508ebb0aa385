"""One style found by another."""

from pathlib import Path

import numpy as np
import pytest
from backbones import backbone, save_backbone
from images import photo
from PIL import Image

from mcbeit.bench.emoji_styles import PAIRS, compare, pixel_vectors, read_styles, score, sweep
from mcbeit.body_loading import load_body
from mcbeit.encoder import EncoderConfig, load_encoder
from mcbeit.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten emoji by three hands: noto draws as fluent does, twemoji something else."""
    root = tmp_path_factory.mktemp("styles")
    for number in range(10):
        for style, seed in (("fluent", number), ("noto", number), ("twemoji", 100 + number)):
            path = root / ("val" if number < 4 else "train") / style / f"{number:03x}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(32, 32, seed=seed)).save(path)
    return root


def test_score__is_by_the_rank_of_the_one_that_is_wanted() -> None:
    gallery = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found = score(np.array([[2.0, 0.0], [1.0, 0.1], [1.0, 0.0]]), ["a", "b", "c"], gallery, ["a", "b", "c"])
    assert found.recall == pytest.approx((1 / 3, 1, 1))
    assert found.mean_reciprocal_rank == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_score__ties_count_against_it() -> None:
    same = np.ones((12, 3))
    found = score(same, [str(i) for i in range(12)], same, [str(i) for i in range(12)])
    assert found.recall == (0, 0, 0)


def test_read_styles__knows_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    styles = read_styles(folder)
    assert {name: (len(one.paths), int(one.is_held_out.sum())) for name, one in styles.items()} == dict.fromkeys(
        ("fluent", "noto", "twemoji"), (10, 4)
    )
    assert styles["fluent"].emoji == styles["noto"].emoji
    with pytest.raises(DataError, match=r"there are no pictures at .*mcbeit data prepare emoji-styles"):
        read_styles(tmp_path)


def test_compare__finds_what_is_drawn_alike(folder: Path) -> None:
    styles = read_styles(folder)
    alike, other, _ = compare({style: pixel_vectors(one.paths) for style, one in styles.items()}, styles)
    assert PAIRS[0] == ("fluent", "noto")
    assert alike.recall == (1, 1, 1)
    assert alike.mean_reciprocal_rank == 1
    assert other.mean_reciprocal_rank < 0.9


def test_sweep__is_what_encoders_give(folder: Path, tmp_path: Path) -> None:
    weights = save_backbone(tmp_path / "beit.pth", backbone())
    paths = read_styles(folder)["fluent"].paths
    found = sweep(load_body(weights, EncoderConfig()), (1, 3), paths)
    assert len(found) == 2 * 4
    for layer, pooling in ((1, "cls+mean"), (3, "gem")):
        encoder = load_encoder(
            weights, EncoderConfig.model_validate({"layer": layer, "pooling": pooling, "normalize": False})
        )
        assert np.allclose(found[f"layer {layer}, {pooling}"], encoder.embed(paths), atol=1e-5)
