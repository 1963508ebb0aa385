"""Many vectors from one pass are the vectors that single encoders give."""

import numpy as np
import pytest
from backbones import backbone, save_backbone
from images import photo

from mcbeit.bench.sweep import Column, SweepEncoder, split_columns
from mcbeit.encoder import EncoderConfig, load_encoder
from mcbeit.errors import BenchError

RANDOM = {"weights": "random", "image_size": 32}


@pytest.fixture(scope="module")
def beit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_backbone(tmp_path_factory.mktemp("weights") / "beit.pth", backbone()))


@pytest.mark.parametrize("source", ["beit", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize(
    "column",
    [Column(1, "mean", False), Column(2, "cls+mean", True), Column(3, "gem", True), Column(3, "cls", False)],
)
def test_a_column_is_what_an_encoder_of_that_layer_and_pooling_gives(beit: str, source: str, column: Column) -> None:
    model, options = (beit, {}) if source == "beit" else (source, RANDOM)
    other = Column(1, column.pooling, column.final_norm)
    encoder = SweepEncoder.load(model, EncoderConfig(**options), (other, column))
    images = [photo(seed=seed) for seed in range(3)]
    found = split_columns(encoder.embed(images), 2)[:, 1]
    single = EncoderConfig(
        layer=column.layer, pooling=column.pooling, final_norm=column.final_norm, normalize=False, **options
    )
    wanted = load_encoder(model, single).embed(images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_stages_of_a_convolutional_network_need_the_same_width() -> None:
    encoder = SweepEncoder.load(
        "timm:resnet18", EncoderConfig(**RANDOM), (Column(5, "mean", False), Column(5, "gem", False))
    )
    assert encoder.spec.dim == 2 * 512


def test_its_vectors_are_no_others() -> None:
    one, other = (
        SweepEncoder.load("timm:vit_tiny_patch16_224", EncoderConfig(**RANDOM), (Column(layer, "mean", False),))
        for layer in (1, 2)
    )
    assert one.spec.fingerprint != other.spec.fingerprint
    assert not one.spec.normalize


@pytest.mark.parametrize(
    ("source", "column", "told"),
    [
        ("timm:vit_tiny_patch16_224", Column(13, "mean", False), "layer 13 is not there: .* has layers 1 to 12"),
        ("timm:resnet18", Column(1, "cls", False), "has no cls token"),
    ],
)
def test_what_a_model_does_not_have_is_one_error(source: str, column: Column, told: str) -> None:
    with pytest.raises(BenchError, match=told):
        SweepEncoder.load(source, EncoderConfig(**RANDOM), (column,))
