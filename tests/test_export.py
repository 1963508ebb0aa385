"""`mcbeit export`: a folder whose graph gives the numbers of the model, or no folder."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from backbones import backbone, save_backbone
from click.testing import CliRunner
from images import encode, photo

from mcbeit import graph as graphs
from mcbeit import parity
from mcbeit.checkpoint import Checkpoint, CheckpointFolder
from mcbeit.cli.main import cli
from mcbeit.config import validate
from mcbeit.embeddings import load_embeddings
from mcbeit.encoder import EncoderConfig, load_encoder
from mcbeit.errors import ConfigError, EncoderError, ExportError, ParityError
from mcbeit.export import ExportConfig, export_model
from mcbeit.graph import write_graph
from mcbeit.model_card import preprocessor_config, usage
from mcbeit.model_folder import read_model_folder
from mcbeit.onnx_encoder import OnnxEncoder, open_session
from mcbeit.preprocess import Preprocess
from mcbeit.real_images import real_pixels
from mcbeit.torch_encoder import TorchEncoder
from mcbeit.whitening import Moments

FAST: dict[str, Any] = {"num_images": 8, "measure_speed": False}


def config(**options: Any) -> ExportConfig:
    return validate(ExportConfig, {**FAST, **options})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("weights") / "beit.pth", backbone())


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    """Two sizes, an extra layer, speed measured; not to be written to."""
    out = weights.parent / "exported"
    options = {"image_size": "32,48", "layers": "1", "license": "apache-2.0", "num_images": 48, "measure_speed": True}
    export_model(weights, out, validate(ExportConfig, options))
    return out


# numbers


def test_onnx__gives_the_numbers_of_torch(weights: Path, exported: Path) -> None:
    images = [photo(seed=seed) for seed in range(64)]
    for size in (32, 48):
        torch_encoder = load_encoder(weights, EncoderConfig(image_size=size))
        onnx_encoder = load_encoder(exported, EncoderConfig(image_size=size))
        assert isinstance(onnx_encoder, OnnxEncoder)
        assert onnx_encoder.spec == torch_encoder.spec.model_copy(update={"name": onnx_encoder.spec.name})
        assert parity.cosine(torch_encoder.embed(images), onnx_encoder.embed(images)).min() > 0.99999
        features = torch_encoder.patch_features(images), onnx_encoder.patch_features(images)
        assert parity.cosine(*features).min() > 0.99999


def test_embeddings__agree_between_torch_onnx_and_files(weights: Path, exported: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "images" / f"{seed:02d}.jpg" for seed in range(64)]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        path.write_bytes(encode(photo(seed=seed), "jpg"))
    found = {"torch": load_encoder(weights).embed(paths), "onnx": load_encoder(exported).embed(paths)}
    for name, model in (("torch file", weights), ("onnx file", exported)):
        out = tmp_path / f"{name}.npy"
        done = CliRunner().invoke(cli, ["embed", str(model), str(paths[0].parent), "-o", str(out)])
        assert done.exit_code == 0, done.output
        stored = load_embeddings(out)
        assert stored.spec.fingerprint == load_encoder(weights).spec.fingerprint
        assert stored.ids == [path.name for path in paths]
        found[name] = np.asarray(stored.vectors)
    for vectors in found.values():
        assert parity.cosine(found["torch"], vectors).min() > parity.MIN_COSINE["fp32"]
    assert np.array_equal(found["torch"], found["torch file"])


def test_onnx__is_the_same_for_every_batch_size(exported: Path) -> None:
    encoder = OnnxEncoder(exported)
    pixels, _ = real_pixels(None, encoder.spec.preprocess, 16)
    together = encoder.compute(pixels)
    for size in (1, 2, 3, 8):
        parts = [encoder.compute(pixels[start : start + size]) for start in range(0, 16, size)]
        assert np.abs(np.concatenate(parts) - together).max() < 1e-5


def test_onnx__extra_layers_are_outputs(weights: Path, exported: Path) -> None:
    encoder = OnnxEncoder(exported)
    pixels, _ = real_pixels(None, encoder.spec.preprocess, 3)
    (found,) = encoder.run(pixels, ["layer_1"])
    wanted = load_encoder(weights, EncoderConfig(layer=1)).compute(pixels, patches=True)
    assert np.abs(found - wanted).max() < 1e-4
    assert encoder.graph.outputs == {"embedding": (32,), "patch_tokens": (4, 4, 32), "layer_1": (4, 4, 32)}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("timm:test_vit", {"pooling": "cls+mean", "layer": 4, "layers": [2, 6]}),
        ("timm:test_vit_relpos", {}),
        ("timm:test_efficientnet", {"layers": [3]}),
        ("timm:test_convnext", {"pooling": "gem"}),
    ],
)
def test_export__of_any_model_of_timm(model: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = export_model(model, tmp_path / "out", config(weights="random", image_size=64, **options))
    encoder = OnnxEncoder(found.folder)
    choices = {key: value for key, value in options.items() if key != "layers"}
    torch_encoder = load_encoder(model, EncoderConfig(weights="random", image_size=64, **choices))
    assert encoder.spec.fingerprint == torch_encoder.spec.fingerprint
    images = [photo(seed=seed) for seed in range(5)]
    assert parity.cosine(torch_encoder.embed(images), encoder.embed(images)).min() > 0.99999
    names = [f"layer_{number}" for number in options.get("layers", [])]
    assert list(encoder.graph.outputs) == ["embedding", "patch_tokens", *names]


def test_export__of_timms_own_beit_has_a_batch_of_any_size(tmp_path: Path) -> None:
    """What timm's own attention does not give."""
    options = {"weights": "random", "image_size": 32}
    encoder = TorchEncoder.load("timm:beit_base_patch16_224", EncoderConfig(**options, layer=1))
    write_graph(encoder.model, encoder.spec, tmp_path / "x.onnx")
    dims = onnx.load(tmp_path / "x.onnx").graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims[1:]] == [32, 32, 3]


def test_export__of_other_channels(tmp_path: Path) -> None:
    path = save_backbone(tmp_path / "five.pth", backbone(channels=5))
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        np.save(tmp_path / "images" / f"{i}.npy", rng.random((40, 40, 5)).astype(np.float32))
    images = {"source": str(tmp_path / "images"), "channels": 5}
    found = export_model(path, tmp_path / "out", config(images=images))
    planes = rng.random((40, 40, 5)).astype(np.float32)
    assert np.allclose(load_encoder(found.folder).embed([planes]), load_encoder(path).embed([planes]), atol=1e-5)


def test_export__with_whitening(weights: Path, tmp_path: Path) -> None:
    plain = load_encoder(weights, EncoderConfig(normalize=False))
    moments = Moments(32)
    moments.add(plain.embed([photo(seed=seed) for seed in range(80)]))
    moments.whitening(fingerprint=plain.spec.fingerprint, dim=8).save(tmp_path / "whitening.safetensors")
    choice = {"whitening": str(tmp_path / "whitening.safetensors")}
    found = export_model(weights, tmp_path / "out", config(**choice))
    wanted = load_encoder(weights, EncoderConfig(**choice))
    encoder = load_encoder(found.folder)
    assert (encoder.spec.dim, encoder.spec.fingerprint) == (8, wanted.spec.fingerprint)
    assert encoder.spec.fingerprint != plain.spec.fingerprint
    assert np.allclose(encoder.embed([photo()]), wanted.embed([photo()]), atol=1e-4)


# precisions


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.6), ("int8", 0.4)])
def test_export__in_fewer_bits(precision: str, share: float, tmp_path: Path) -> None:
    weights = save_backbone(tmp_path / "wide.pth", backbone(dim=128, depth=2))
    exported = export_model(weights, tmp_path / "plain", config()).folder
    found = export_model(weights, tmp_path / "out", config(precision=precision, num_images=48))
    encoder = OnnxEncoder(found.folder)
    assert encoder.spec.precision == precision
    assert encoder.spec.fingerprint != load_encoder(exported).spec.fingerprint
    assert {path.name for path in found.folder.glob("*.onnx*")} == {"model.onnx"}
    assert (found.folder / "model.onnx").stat().st_size < share * (exported / "model.onnx").stat().st_size
    images = [photo(seed=seed) for seed in range(8)]
    cosines = parity.cosine(load_encoder(weights).embed(images), encoder.embed(images))
    assert cosines.min() > parity.MIN_COSINE[found.manifest.graphs[0].spec.precision]
    assert encoder.embed(images).dtype == np.float32


def test_int8__is_another_model_by_other_images(weights: Path, tmp_path: Path) -> None:
    """They say which numbers keep their bits, and in convolutional networks the scales."""
    found = [
        load_encoder(export_model(weights, tmp_path / str(i), config(precision="int8", num_images=count)).folder)
        for i, count in enumerate((8, 8, 9))
    ]
    first, same, other = (encoder.spec.fingerprint for encoder in found)
    assert first == same != other


def test_int8__keeps_bits_where_eight_measure_badly(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export_model(weights, tmp_path / "whole", config(precision="int8"))
    worst = min(one.min_cosine for one in whole.manifest.graphs[0].parity)
    monkeypatch.setitem(parity.MIN_COSINE, "int8", worst)  # with its margin, more than 8 bits for all can give
    found = export_model(weights, tmp_path / "out", config(precision="int8"))
    assert min(one.min_cosine for one in found.manifest.graphs[0].parity) > worst
    sizes = [(one.folder / "model.onnx").stat().st_size for one in (whole, found)]
    assert sizes[0] < sizes[1]


# the folder


def test_folder__is_described_by_its_manifest(exported: Path, weights: Path) -> None:
    manifest = read_model_folder(exported)
    assert {path.name for path in exported.iterdir()} == {"manifest.json", *manifest.files}
    assert {"model.onnx", "model_48.onnx", "README.md", "config.json", "preprocessor_config.json"} < set(manifest.files)
    assert manifest.license == "apache-2.0"
    assert manifest.training is None
    assert {"torch", "onnx", "onnxruntime", "mcbeit", "python"} <= manifest.versions.keys()
    assert manifest.preprocessing["resized_to"] == 36
    for graph in manifest.graphs:
        assert [one.batch_size for one in graph.parity] == [1, 3, 8]
        assert {speed.runtime for speed in graph.speed} == {"torch fp32", "onnxruntime fp32"}
    metadata = {entry.key: entry.value for entry in onnx.load(exported / "model.onnx").metadata_props}
    assert metadata["mcbeit.fingerprint"] == manifest.graphs[0].spec.fingerprint


def test_folder__of_a_run_tells_its_training(tmp_path: Path) -> None:
    run = tmp_path / "run-1.5"
    tensors = {f"backbone.{name}": value for name, value in backbone().state_dict().items()}
    CheckpointFolder(run / "checkpoints").save(Checkpoint(1, {"model": tensors}, {}))
    text = (
        "job: pretrain\nmodel: {dim: 32, depth: 3, num_heads: 2, patch_size: 8}\npreprocess: {image_size: 32}\n"
        "data: {source: elsewhere/photos}\noptim: {epochs: 7}\nobjective: {targets: multi-choice}\n"
    )
    (run / "config.yaml").write_text(text)
    found = export_model(run, tmp_path / "out", config())
    assert found.manifest.training is not None
    assert found.manifest.training["optim"] == {"epochs": 7}
    card = (found.folder / "README.md").read_text()
    assert "| images | `elsewhere/photos` |" in card
    assert "| epochs | 7 |" in card
    assert found.manifest.name == "run-1.5"
    checkpoint = load_encoder(run / "checkpoints" / "step-00000001")  # which has a manifest.json of its own
    assert checkpoint.spec.fingerprint == found.manifest.graphs[0].spec.fingerprint


def test_usage__needs_numpy_pillow_and_onnxruntime_only(exported: Path, tmp_path: Path) -> None:
    """In a process that cannot import anything else of ours; the vector is that of the encoder."""
    (tmp_path / "photo.jpg").write_bytes(encode(photo(70, 50), "jpg"))
    lines = usage(read_model_folder(exported).graphs[0], str(exported))
    assert len([line for line in lines.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    guard = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('mcbeit', 'torch', 'timm', 'pydantic', 'onnx', 'safetensors'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    code = f"{guard}{lines}\nnp.save('vector.npy', vector)\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    wanted = OnnxEncoder(exported).embed([tmp_path / "photo.jpg"])
    assert np.allclose(np.load(tmp_path / "vector.npy"), wanted, atol=1e-6)


def test_usage__is_what_the_docs_show(exported: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
    assert usage(read_model_folder(exported).graphs[0], "DIR") in text
    assert 'timm.create_model("local-dir:DIR", pretrained=True)' in text


@pytest.mark.parametrize("options", [{"resize": "squash", "crop_fraction": 1.0}, {"interpolation": "lanczos"}])
def test_preprocessor_config__is_the_rule(options: dict[str, Any]) -> None:
    found = preprocessor_config(Preprocess(image_size=32, **options))
    assert found["do_center_crop"] == ("resize" not in options)
    assert found["size"] == ({"height": 32, "width": 32} if "resize" in options else {"shortest_edge": 36})
    assert found["resample"] == (1 if "interpolation" in options else 3)


def test_timm__loads_the_folder(exported: Path, weights: Path) -> None:
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    wanted = backbone().forward_tokens(images)
    assert torch.allclose(model.forward_features(images), wanted, atol=1e-5)
    card = (exported / "README.md").read_text()
    assert f'timm.create_model("local-dir:{exported.name}", pretrained=True)' in card


def test_timm__loads_the_folder_of_its_own_model(tmp_path: Path) -> None:
    found = export_model("timm:test_vit", tmp_path / "out", config(weights="random", image_size=96, seed=2))
    model = timm.create_model(f"local-dir:{found.folder}", pretrained=True).eval()
    encoder = load_encoder(found.folder, EncoderConfig(normalize=False))
    pixels, _ = real_pixels(None, encoder.spec.preprocess, 2)
    images = encoder.spec.preprocess.normalise(pixels).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(images)).numpy()
    assert np.allclose(encoder.compute(pixels), wanted, atol=1e-4)


# what goes wrong


def test_export__that_is_not_the_model_is_not_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.MIN_COSINE, "fp32", 1.1)
    with pytest.raises(ParityError, match=r"model.onnx does not give the numbers of beit: minimum cosine 1.0"):
        export_model(weights, tmp_path / "out", config())
    assert list(tmp_path.iterdir()) == []
    shown = CliRunner().invoke(cli, ["export", str(weights), "-o", str(tmp_path / "out"), "num_images=8"])
    assert shown.exit_code == 1
    assert "min cosine" in shown.stdout
    assert "nothing was written" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_export__replaces_a_model_only_when_told(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = export_model(weights, out, config()).manifest
    with pytest.raises(ExportError, match=r"out' exists; choose another name, or replace it with --force"):
        export_model(weights, out, config())
    with monkeypatch.context() as patch:
        patch.setitem(parity.MIN_COSINE, "fp32", 1.1)
        with pytest.raises(ParityError):
            export_model(weights, out, config(), force=True)
    assert read_model_folder(out) == before
    after = export_model(weights, out, config(pooling="cls"), force=True).manifest
    assert after.graphs[0].spec.pooling == "cls"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export__does_not_touch_other_folders(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    with pytest.raises(ExportError, match=r"mine' exists and is no exported model"):
        export_model(weights, tmp_path / "mine", config(), force=True)
    with pytest.raises(ExportError, match=r"the folder of '.*' does not exist"):
        export_model(weights, tmp_path / "no" / "where", config())
    (tmp_path / "empty").mkdir()
    assert export_model(weights, tmp_path / "empty", config()).folder == tmp_path / "empty"


def test_export__torch_that_cannot_is_one_error(weights: Path, tmp_path: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if float(images.sum()) > 0 else -images

    encoder = TorchEncoder.load(weights)
    encoder.model.body.model.patch_embed = torch.nn.Sequential(Odd(), encoder.model.body.model.patch_embed)
    encoder.model.body.model.patch_embed.grid_size = (4, 4)
    level = logging.getLogger("torch.onnx").level
    with pytest.raises(ExportError, match=r"torch cannot export beit with a batch of any size: "):
        write_graph(encoder.model, encoder.spec, tmp_path / "x.onnx")
    assert logging.getLogger("torch.onnx").level == level
    assert list(tmp_path.iterdir()) == []


def test_export__large_weights_lie_beside_the_graph(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "INLINE_BYTES", 1000)
    found = export_model(weights, tmp_path / "out", config())
    assert "model.onnx.data" in found.manifest.files
    assert load_encoder(found.folder).embed([photo()]).shape == (1, 32)
    small = export_model(weights, tmp_path / "small", config(precision="int8"))
    assert [path.name for path in small.folder.glob("*.onnx*")] == ["model.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision"),
        ({"image_size": "224,large"}, "image_size"),
        ({"layer": 0}, "layer"),
        ({"poolin": "cls"}, "did you mean 'pooling'"),
    ],
)
def test_config__says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(ExportConfig, options)


def test_onnx_encoder__refuses_choices_of_the_export(exported: Path) -> None:
    with pytest.raises(EncoderError, match=r"pooling, layer: chosen when beit was exported"):
        OnnxEncoder(exported, EncoderConfig(pooling="cls", layer=2))
    with pytest.raises(
        EncoderError, match=r"exported for image size 32, 48, not 64; export it again with image_size=32"
    ):
        OnnxEncoder(exported, EncoderConfig(image_size=64))
    assert not load_encoder(exported, EncoderConfig(normalize=False)).spec.normalize


def test_onnx_encoder__runs_on_the_provider_asked_for_or_not_at_all(exported: Path) -> None:
    assert OnnxEncoder(exported, provider="cpu", threads=1).provider == "CPUExecutionProvider"
    with pytest.raises(EncoderError, match=r"provider tensorrt is not in this ONNX Runtime, which has .*cpu"):
        OnnxEncoder(exported, provider="tensorrt")


def test_onnxruntime__twice_is_diagnosed(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EncoderError, match=r"onnxruntime and onnxruntime-gpu are both installed.*pip uninstall"):
        OnnxEncoder(exported)


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_read_model_folder__knows_its_files(exported: Path, tmp_path: Path) -> None:
    folder = copied(exported, tmp_path / "copy")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(EncoderError, match=r"model.onnx' is not the file that the manifest describes"):
        load_encoder(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(EncoderError, match=r"lacks its file model.onnx; copy the whole folder"):
        load_encoder(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EncoderError, match=r"the manifest '.*' cannot be used"):
        load_encoder(folder)
    (folder / "manifest.json").write_text(json.dumps({"kind": "mcbeit-weights"}))
    with pytest.raises(EncoderError, match=r"is the manifest of something else"):
        load_encoder(folder)


def test_encoder__of_a_folder_that_is_replaced_meanwhile(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(exported, tmp_path / "copy")

    def replace_it(*arguments: Any, **options: Any) -> Any:
        told = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**told, "license": "another"}))
        return open_session(*arguments, **options)

    monkeypatch.setattr("mcbeit.onnx_encoder.open_session", replace_it)
    with pytest.raises(EncoderError, match="was replaced while it was read; load it again"):
        load_encoder(folder)


def test_command__prints_the_tables(weights: Path, tmp_path: Path) -> None:
    arguments = ["export", str(weights), "-o", str(tmp_path / "out"), "num_images=8", "image_size=32"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "model.onnx, fp32, against torch fp32:"
    assert lines[1].split()[:2] == ["batch", "images"]
    assert any(line.startswith("onnxruntime fp32") for line in lines)
    assert lines[-1].startswith(f"{tmp_path / 'out'}: 32 numbers per image, fingerprint ")
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 2
    assert "exists" in again.stderr
