"""Training the discrete VAE: it learns, its codes are used, its run can be resumed and read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tokenizer_config, write_shapes

import mcbeit.tokenizer_training as module
from mcbeit.checkpoint import Checkpoint, CheckpointFolder
from mcbeit.config import dump, validate
from mcbeit.data import DataConfig, Key, ViewDataset
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import ConfigError, DataError, RunError, WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.tokenizer_choice import TokenizerChoice, load_run, load_tokenizer
from mcbeit.tokenizer_plan import get_tokenizer, tokenizer_run, train_first, with_path
from mcbeit.tokenizer_training import CodebookConfig, imbalance, relaxation, revive_dead_codes, train_tokenizer
from mcbeit.vqgan import GumbelVQGAN, GumbelVQGANConfig
from mcbeit.worker import Worker


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"))


def test_train_tokenizer__learns_to_reconstruct(source: Path, tmp_path: Path) -> None:
    optim = {"steps": 100, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    summary = train_tokenizer(tokenizer_config(source, tmp_path / "run", optim=optim))
    assert summary["reconstruction_error"] < 0.8 * summary["pixel_variance"]
    assert summary["code_perplexity"] > 4
    assert sum(summary["code_counts"]) == 24 * 16
    assert summary["temperature"] > 0


def test_train_tokenizer__leaves_a_run_folder_to_read(source: Path, tmp_path: Path) -> None:
    summary = train_tokenizer(tokenizer_config(source, tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {"config.yaml", "env.json", "metrics.jsonl", "checkpoints"} <= {path.name for path in tmp_path.iterdir()}
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.size == (16 * 16, 2 * 16)
    tokenizer = load_run(tmp_path, "dvae")
    assert tokenizer.default_temperature == summary["temperature"]
    assert tokenizer.config.vocab_size == 16


def test_train_tokenizer__resumes_as_if_never_stopped(source: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = {"checkpoint": {"every_epochs": 1}}
    train_tokenizer(tokenizer_config(source, whole, **settings))
    train_tokenizer(tokenizer_config(source, halves, **settings))
    # go back to the checkpoint in the middle
    (halves / "summary.json").unlink()
    for path in (halves / "checkpoints" / "step-00000006").iterdir():
        path.unlink()
    train_tokenizer(tokenizer_config(source, halves, **settings), resume=True)
    expected, found = load_run(whole, "dvae").state_dict(), load_run(halves, "dvae").state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_train_tokenizer__counts_corrupt_images_and_goes_on(tmp_path: Path) -> None:
    source = write_shapes(tmp_path / "images")
    (source / "disc" / "bad.png").write_bytes(b"no image")
    config = tokenizer_config(
        source, tmp_path / "run", data={"source": str(source), "num_workers": 0, "max_corrupt_fraction": 0.1}
    )
    assert train_tokenizer(config)["corrupt"] == 1
    assert "bad.png\t" in (tmp_path / "run" / "corrupt.txt").read_text()


def test_train_tokenizer__wants_an_image_of_whole_codes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size=18 must be a multiple of model.stride=4"):
        train_tokenizer(tokenizer_config(source, tmp_path / "run", image_size=18))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "masks_per_image", 2),
        ("optim", "accumulate", 2),
        ("compute", "compile", True),
        ("compute", "gradient_checkpointing", True),
    ],
)
def test_tokenizer_config__refuses_what_it_does_not_read(section: str, key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: for pretraining only"):
        tokenizer_config(tmp_path, tmp_path, **{section: {key: value}})


def test_tokenizer_run__hands_on_how_images_are_read(tmp_path: Path) -> None:
    data = DataConfig(source=str(tmp_path), max_corrupt_fraction=0.25, num_workers=0, masks_per_image=2)
    config = tokenizer_run(TokenizerChoice(kind="dvae", preset="photo-tokenizer"), data, Preprocess(), seed=5)
    assert config is not None
    found = config.data
    assert (found.source, found.max_corrupt_fraction, found.num_workers) == (str(tmp_path), 0.25, 0)
    assert (found.masks_per_image, config.seed) == (1, 5)


@pytest.mark.parametrize(("num_images", "batch_size"), [(None, 64), (24, 24), (64, 64), (1000, 64)])
def test_tokenizer_run__has_no_larger_batch_than_there_are_images(num_images: int | None, batch_size: int) -> None:
    choice = TokenizerChoice(kind="dvae", preset="photo-tokenizer")
    config = tokenizer_run(choice, DataConfig(source="photos"), Preprocess(), seed=0, num_images=num_images)
    assert config is not None
    assert config.optim.batch_size == batch_size


def test_tokenizer_run__is_none_where_nothing_is_to_be_trained(source: Path, tmp_path: Path) -> None:
    assert tokenizer_run(TokenizerChoice(path="x.safetensors"), DataConfig(), Preprocess(), seed=0) is None
    train_tokenizer(tokenizer_config(source, tmp_path))
    choice = TokenizerChoice(kind="dvae", preset="photo-tokenizer", path=str(tmp_path))
    assert tokenizer_run(choice, DataConfig(source=str(source)), Preprocess(), seed=0) is None


def test_train_tokenizer__starts_nothing_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no image source"):
        train_tokenizer(tokenizer_config(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_get_tokenizer__trains_a_preset_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump(tokenizer_config(source, tmp_path / "unused")))
    choice = with_path(TokenizerChoice(kind="dvae", preset=str(preset)), tmp_path / "run")
    assert choice.path == str(tmp_path / "run" / "tokenizer")
    data = DataConfig(source=str(source), num_workers=0)
    train_first(tokenizer_run(choice, data, Preprocess(), seed=0), Worker())
    first = get_tokenizer(choice, (4, 4), 3)
    assert "of 16 codes used" in capsys.readouterr().err
    train_first(tokenizer_run(choice, data, Preprocess(), seed=0), Worker())
    second = get_tokenizer(choice, (4, 4), 3)
    assert capsys.readouterr().err == ""
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_train_tokenizer__is_judged_on_crops_that_it_never_saw(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[Key] = []
    read = ViewDataset.__getitem__
    monkeypatch.setattr(ViewDataset, "__getitem__", lambda data, key: keys.append(key) or read(data, key))
    train_tokenizer(tokenizer_config(source, tmp_path))
    trained, judged = keys[: 6 * 8], keys[6 * 8 :]
    assert len(judged) == 24
    assert not {key.epoch for key in trained} & {key.epoch for key in judged}


@pytest.mark.parametrize("vocab_size", [2, 3, 4])
def test_train_tokenizer__has_any_vocabulary(source: Path, tmp_path: Path, vocab_size: int) -> None:
    model = {"stride": 4, "vocab_size": vocab_size, "dim": 16, "num_blocks": 0}
    optim = {"steps": 20, "batch_size": 8, "lr": 1e-2, "weight_decay": 0}
    assert train_tokenizer(tokenizer_config(source, tmp_path, model=model, optim=optim))["temperature"] > 0


def test_train_tokenizer__keeps_what_it_has_learned_when_codes_collapse(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "logits_of", lambda model, images: torch.zeros(1, 4, 16))
    summary = train_tokenizer(tokenizer_config(source, tmp_path))
    assert "temperature" not in summary
    assert "warning: the codes have collapsed" in capsys.readouterr().err
    with pytest.raises(RunError, match="has no usable codes: it is unfinished or its codes have collapsed"):
        load_run(tmp_path, "dvae")


def test_train_tokenizer__stops_where_the_loss_is_lost(source: Path, tmp_path: Path) -> None:
    optim = {"steps": 40, "batch_size": 8, "lr": 1e12, "min_lr": 0, "clip_grad": None, "warmup_epochs": 0}
    with pytest.raises(RunError, match="5 times in a row"):
        train_tokenizer(tokenizer_config(source, tmp_path, optim=optim))
    for file in tmp_path.glob("checkpoints/*/model.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(file).values())


def test_tokenizer_choice__a_preset_trains_runs_only() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.preset=x trains a tokenizer of kind dvae or kmeans, .*=vqgan"):
        validate(TokenizerChoice, {"kind": "vqgan", "preset": "x"})


def test_load_tokenizer__tells_other_sizes_and_other_runs(source: Path, tmp_path: Path) -> None:
    sizes = {"embed_dim": 32, "dim": 32, "multipliers": (1, 1, 2), "num_blocks": 1}
    small, path = GumbelVQGANConfig(vocab_size=32, **sizes), tmp_path / "vqgan.safetensors"
    save_file(GumbelVQGAN(small).state_dict(), path)
    assert load_tokenizer(TokenizerChoice(path=str(path), vqgan=small)).vocab_size == 32
    other = TokenizerChoice(path=str(path), vqgan=GumbelVQGANConfig(vocab_size=64, **sizes))
    with pytest.raises(WeightsError, match=r"has other sizes than tokenizer\.vqgan says: .*vocab_size=32.*leave"):
        load_tokenizer(other)
    CheckpointFolder(tmp_path / "checkpoints").save(Checkpoint(1, {}, {"temperature": 1.0}))
    with pytest.raises(RunError, match="is no tokenizer run; name the folder of a run whose job is tokenizer"):
        load_run(tmp_path, "dvae")


def test_load_tokenizer__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tokenizer.path is not set"):
        load_tokenizer(TokenizerChoice())
    with pytest.raises(RunError, match="there is no trained tokenizer at"):
        load_tokenizer(TokenizerChoice(kind="dvae", path=str(tmp_path)))
    with pytest.raises(RunError, match="there is no trained tokenizer at"):
        load_tokenizer(TokenizerChoice(path=str(tmp_path / "none.safetensors")))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=r"bad\.safetensors' cannot be read as weights: it is no checkpoint"):
        load_tokenizer(TokenizerChoice(path=str(tmp_path / "bad.safetensors")))


def test_imbalance__is_zero_for_even_use_and_log_v_for_one_code() -> None:
    even = torch.eye(8)[None] * 100
    assert imbalance(even) == pytest.approx(0, abs=1e-5)
    one = torch.zeros(1, 8, 8)
    one[..., 3] = 100
    assert imbalance(one) == pytest.approx(np.log(8), rel=1e-5)


def test_relaxation__goes_from_start_to_end() -> None:
    config = CodebookConfig(start_temperature=2.0, end_temperature=0.5)
    assert [relaxation(config, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.5])


def test_revive_dead_codes__copies_busy_ones() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(DiscreteVAEConfig(stride=2, vocab_size=4, dim=8, num_blocks=0))
    before = model.codebook.detach().clone()
    revive_dead_codes(model, torch.tensor([0.0, 5.0, 0.0, 0.0]), seed=1)
    assert torch.equal(model.codebook[1], before[1])
    for dead in (0, 2, 3):
        moved = (model.codebook[dead] - before[1]).norm()
        assert 0 < moved < (before[dead] - before[1]).norm()
