"""Images of another number of channels than three, through everything: views, tokenizer, backbone, probes, report."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encode, photo
from PIL import Image
from shards import write_parquet, write_tar
from tiny import CHANNELS, pretrain_config, tokenizer_config, write_planes, write_shapes

from mcbeit.augment import CropConfig, View, normalise, read_views
from mcbeit.bench.run_report.report import report, report_weights
from mcbeit.checkpoint import load_checkpoint
from mcbeit.config import dump
from mcbeit.data import DataConfig, ViewDataset, batch_keys, make_loader
from mcbeit.errors import ConfigError, ImageError
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain import pretrain
from mcbeit.sources import ImageSource, open_source
from mcbeit.tokenizer_choice import load_run
from mcbeit.tokenizer_training import train_tokenizer
from mcbeit.weight_conversion import convert_weights
from mcbeit.weight_fitting import load_backbone


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def six(image: np.ndarray) -> np.ndarray:
    """A colour image twice over."""
    return np.concatenate([image, image], axis=2)


# views


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos", "nearest"])
def test_read_views__of_planes_are_the_crops_of_colours(interpolation: Any) -> None:
    config, views = CropConfig(scale=(0.3, 0.6)), (View(16, interpolation), View(24, "bicubic"))
    for seed in range(8):
        colours = read_views(encode(photo(seed=seed)), config, views, np.random.default_rng(seed))
        planes = read_views(npy(six(photo(seed=seed))), config, views, np.random.default_rng(seed), 6)
        for one, other in zip(colours, planes, strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(other[:3], other[3:])
            assert (one / 255 - other[:3].clamp(0, 1)).abs().max() < 0.02


@pytest.mark.parametrize("options", [{}, {"resize": "squash", "crop_fraction": 1.0, "interpolation": "lanczos"}])
def test_pixels__of_planes_are_those_of_colours(options: dict[str, Any]) -> None:
    colours = Preprocess(image_size=20, **options)
    planes = Preprocess(image_size=20, mean=colours.mean * 2, std=colours.std * 2, **options)
    assert (colours.channels, planes.channels) == (3, 6)
    wanted, found = colours.pixels(photo()), planes.pixels(npy(six(photo())))
    assert (found.dtype, found.shape) == (np.float32, (20, 20, 6))
    assert np.abs(wanted / 255 - found[:, :, 3:].clip(0, 1)).max() < 0.02
    assert np.abs(colours.normalise(wanted) - planes.normalise(found.clip(0, 1))[:, :, :3]).max() < 0.1
    assert np.array_equal(planes.pixels(six(photo())), found)


def test_pixels__of_planes_refuses_colours() -> None:
    planes = Preprocess(mean=(0.5,) * 4, std=(0.5,) * 4)
    with pytest.raises(ImageError, match=r"the PNG image is RGB, 3 channels; data.channels is 4"):
        planes.pixels(encode(photo()))
    with pytest.raises(ImageError, match=r"\[height, width, 4\] is wanted"):
        planes.pixels(Image.fromarray(photo()))


def test_normalise__divides_only_integers_by_255() -> None:
    pixels = torch.tensor([[[[51]], [[102]]]], dtype=torch.uint8)
    wanted = normalise(pixels, (0.1, 0.2), (0.5, 2.0))
    assert torch.allclose(wanted.flatten(), torch.tensor([0.2, 0.1]))
    assert torch.allclose(normalise(pixels / 255, (0.1, 0.2), (0.5, 2.0)), wanted)


# config


def changed(section: str, **values: Any) -> dict[str, Any]:
    """The sections of a run on five channels, one of them changed."""
    return {**CHANNELS, section: {**CHANNELS.get(section, {}), **values}}


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        (changed("data", channels=4, source="x"), r"have 5 numbers each, for data.channels=4; measure them with: "),
        (changed("data", channels=4, source="x"), r"mcbeit data stats x data.channels=4"),
        ({"data": {"channels": 5, "source": "x"}}, r"preprocess.mean and preprocess.std have 3 numbers each"),
        (changed("preprocess", std=[0.1]), r"preprocess: mean and std need a number per channel each, found 5 and 1"),
        (changed("crop", color_jitter=0.4), r"crop.color_jitter=0.4 is for colours; data.channels is 5"),
        (changed("tokenizer", kind="vqgan"), r"tokenizer.kind=vqgan is for colours, data.channels is 5"),
    ],
)
def test_pretrain_config__refuses_what_does_not_fit_the_channels(sections: Any, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=wanted):
        pretrain_config(tmp_path, "random", tmp_path, **sections)


def test_tokenizer_config__needs_the_statistics_of_the_channels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.mean and model.std have 3 numbers each, for data.channels=5"):
        tokenizer_config(tmp_path, tmp_path, data=CHANNELS["data"])
    with pytest.raises(ConfigError, match=r"need a number per channel each, found 5 and 3"):
        tokenizer_config(tmp_path, tmp_path, data=CHANNELS["data"], model={"mean": [0.5] * 5})


def test_pretrain__refuses_a_tokenizer_of_other_channels(tmp_path: Path) -> None:
    train_tokenizer(tokenizer_config(write_shapes(tmp_path / "shapes"), tmp_path / "tokenizer"))
    data = {**CHANNELS["data"], "source": str(write_planes(tmp_path / "planes"))}
    config = pretrain_config(tmp_path, tmp_path / "tokenizer", tmp_path / "run", **{**CHANNELS, "data": data})
    with pytest.raises(ConfigError, match=r"data.channels is 5, but the tokenizer takes 3; train one on these images"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_open_source__takes_arrays_only_for_other_channels(tmp_path: Path) -> None:
    source = write_planes(tmp_path, count=4)
    assert len(open_source(str(source), channels=5)) == 4
    colours = open_source(str(source))
    assert (len(colours), colours.passed_over) == (2, {".npy": 2})


# a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on five channels that has trained its tokenizer first; one image has four channels."""
    root = tmp_path_factory.mktemp("channels")
    write_planes(root / "train")
    np.save(root / "train" / "dark" / "odd.npy", np.zeros((24, 24, 4), np.uint8))
    write_planes(root / "val", count=8, seed=1)
    preset = root / "tokenizer.yaml"
    preset.write_text(dump(tokenizer_config(root / "train", root / "unused")))
    sections = {
        **CHANNELS,
        "data": {**CHANNELS["data"], "source": str(root / "train"), "max_corrupt_fraction": 0.1},
        "tokenizer": {"kind": "dvae", "preset": str(preset)},
        "eval": {"every_epochs": 1, "gallery": str(root / "train"), "queries": str(root / "val")},
        "checkpoint": {"every_epochs": 1},
    }
    pretrain(pretrain_config(root, "unused", root / "run", **sections))
    return root


def test_pretrain__of_five_channels(finished: Path) -> None:
    run = finished / "run"
    assert load_run(run / "tokenizer", "dvae").mean == tuple(CHANNELS["preprocess"]["mean"])
    (checkpoint,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    weights = load_checkpoint(checkpoint).tensors["model"]
    assert weights["backbone.patch_embed.proj.weight"].shape == (32, 5, 4, 4)
    (line,) = (run / "corrupt.txt").read_text().splitlines()
    assert line.endswith("odd.npy\tthe array has the shape [24, 24, 4]: no axis has data.channels=5")
    assert (run / "tokenizer" / "reconstructions.png").stat().st_size > 0


def test_report__of_five_channels(finished: Path) -> None:
    found = report(finished / "run")
    assert found.comparison is not None
    assert {row.name: row.dim for row in found.comparison.rows} == {
        "pixels": 16 * 16 * 5,
        "random": 32,
        "pretrained": 32,
    }
    assert "data:image/png" in found.page.read_text()


def test_weights__of_five_channels(finished: Path, tmp_path: Path) -> None:
    run = finished / "run"
    loaded = load_backbone(run)
    assert loaded.channels == 5
    assert loaded.model(torch.zeros(1, 5, 16, 16)).shape == (1, 32)
    convert_weights(run, tmp_path / "official.pth", "official-pretrain")
    (call,) = convert_weights(run, tmp_path / "timm.safetensors", "timm")[-1:]
    assert "in_chans=5" in call
    back = load_backbone(tmp_path / "official.pth")
    assert (back.channels, back.preprocess) == (5, None)
    assert all(torch.equal(value, back.model.state_dict()[name]) for name, value in loaded.model.state_dict().items())


def test_report_weights__of_five_channels(finished: Path) -> None:
    found = report_weights(str(finished / "run"), [f"eval.gallery={finished / 'train'}"])
    assert found.comparison is not None
    assert found.comparison.row("pretrained").dim == 32
    with pytest.raises(ConfigError, match=r"preprocess.mean and preprocess.std have 5 numbers each, for data.channels"):
        report_weights(str(finished / "run"), [f"eval.gallery={finished / 'train'}", "data.channels=3"])


def test_init__refuses_weights_of_other_channels(finished: Path, shapes: Path, tmp_path: Path) -> None:
    config = pretrain_config(shapes, "random", tmp_path / "run", init=str(finished / "run"))
    with pytest.raises(ConfigError, match=r"data.channels is 3, but init=.* was trained on images of 5 channels"):
        pretrain(config)
    assert not (tmp_path / "run").exists()


def test_data_config__opens_with_its_channels(finished: Path) -> None:
    source = DataConfig(source=str(finished / "train"), channels=5).open()
    assert (source.channels, len(source)) == (5, 25)


# batches, wherever the planes lie


def batches(source: ImageSource, steps: range, num_workers: int = 0) -> list[torch.Tensor]:
    dataset = ViewDataset(source, seed=1, crop=CropConfig(), views=(View(16, "bicubic"),))
    keys = batch_keys(len(source), 5, 1, steps)
    return [batch.views[0] for batch in make_loader(dataset, keys, 5, num_workers=num_workers, pin=False)]


def test_batches__of_planes_are_the_same_from_every_kind_step_and_process(tmp_path: Path) -> None:
    folder = write_planes(tmp_path / "folder")
    source = open_source(str(folder), channels=5)
    images = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
    write_tar(tmp_path / "x.tar", images)
    write_parquet(tmp_path / "x.parquet", list(images.values()))
    wanted = batches(source, range(6))
    assert (wanted[0].dtype, wanted[0].shape) == (torch.float32, (5, 5, 16, 16))
    for place in (tmp_path / "folder", tmp_path / "x.tar", tmp_path / "x.parquet"):
        found = open_source(str(place), channels=5)
        assert all(torch.equal(a, b) for a, b in zip(wanted, batches(found, range(6), 2), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(wanted[2:], batches(found, range(2, 6)), strict=True))
