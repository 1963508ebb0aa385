"""Training the discrete VAE: it learns, its codes are used, its run can be resumed and read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tokenizer_config, write_shapes

from mcbeit.config import dump
from mcbeit.data import DataConfig
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import ConfigError, DataError, RunError
from mcbeit.tokenizer_choice import TokenizerChoice, load_dvae, load_tokenizer
from mcbeit.tokenizer_training import (
    CodebookConfig,
    get_tokenizer,
    imbalance,
    preset_for,
    relaxation,
    revive_dead_codes,
    train_tokenizer,
)


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
    tokenizer = load_dvae(tmp_path)
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
    expected, found = load_dvae(whole).state_dict(), load_dvae(halves).state_dict()
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


def test_preset_for__hands_on_how_images_are_read(tmp_path: Path) -> None:
    data = DataConfig(source=str(tmp_path), max_corrupt_fraction=0.25, num_workers=0, masks_per_image=2)
    found = preset_for(TokenizerChoice(kind="dvae", preset="photo-tokenizer"), data).data
    assert (found.source, found.max_corrupt_fraction, found.num_workers) == (str(tmp_path), 0.25, 0)
    assert found.masks_per_image == 1


def test_train_tokenizer__starts_nothing_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no image source"):
        train_tokenizer(tokenizer_config(tmp_path / "nowhere", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_get_tokenizer__trains_a_preset_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(dump(tokenizer_config(source, tmp_path / "unused")))
    choice = TokenizerChoice(kind="dvae", preset=str(preset))
    data = DataConfig(source=str(source), num_workers=0)
    first = get_tokenizer(choice, data, (4, 4), tmp_path / "run")
    assert "tokenizer: 16 of 16 codes" in capsys.readouterr().err or (tmp_path / "run" / "tokenizer").is_dir()
    second = get_tokenizer(choice, data, (4, 4), tmp_path / "run")
    assert capsys.readouterr().err == ""
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_load_tokenizer__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"tokenizer.path is not set"):
        load_tokenizer(TokenizerChoice())
    with pytest.raises(RunError, match="there is no trained tokenizer at"):
        load_tokenizer(TokenizerChoice(kind="dvae", path=str(tmp_path)))
    with pytest.raises(RunError, match="there is no trained tokenizer at"):
        load_tokenizer(TokenizerChoice(path=str(tmp_path / "none.safetensors")))
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(RunError, match="cannot be read as safetensors"):
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
