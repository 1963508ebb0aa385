"""Reading a run back."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import pretrain_config, tokenizer_config

from mcbeit.bench.run_report.trained import fingerprint, last_checkpoint, load_trained, read_config, read_tokenizer
from mcbeit.checkpoint import load_checkpoint
from mcbeit.config import dump
from mcbeit.dvae import DiscreteVAE
from mcbeit.errors import RunError
from mcbeit.pretrain import pretrain
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.tokenizer_choice import TokenizerChoice


def with_tokenizer(shapes: Path, **values: Any) -> PretrainConfig:
    config = pretrain_config(shapes / "train", "none", shapes / "long-gone")
    return config.model_copy(update={"tokenizer": TokenizerChoice.model_validate(values)})


def test_load_trained__is_the_last_checkpoint(run: Path) -> None:
    found = load_trained(run)
    saved = load_checkpoint(run / "checkpoints" / "step-00000010")
    assert (found.step, found.temperature) == (10, saved.numbers["temperature"])
    assert all(torch.equal(saved.tensors["model"][name], value) for name, value in found.model.state_dict().items())
    assert found.backbone is found.model.backbone
    assert not found.model.training
    assert found.teacher is None


def test_load_trained__takes_what_an_unfinished_run_has(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    (run / "summary.json").unlink()
    assert load_trained(run).step == 5


def test_load_trained__reads_the_teacher(shapes: Path, tmp_path: Path) -> None:
    objective = {"target_perplexity": 2, "affinity": "ema", "ema_decay": 0.5}
    config = pretrain_config(shapes / "train", shapes / "tokenizer", tmp_path / "run", objective=objective)
    pretrain(config)
    found = load_trained(tmp_path / "run")
    assert found.teacher is not None
    assert not torch.equal(found.teacher.patch_embed.proj.weight, found.backbone.patch_embed.proj.weight)


@pytest.mark.parametrize("make", [True, False])
def test_read_config__of_a_folder_that_is_no_run(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "photos"
    if make:
        folder.mkdir()
    with pytest.raises(RunError, match=r"photos' is not a run: it (has no config\.yaml|does not exist); name"):
        read_config(folder)


def test_read_config__of_a_tokenizer_run(shapes: Path) -> None:
    with pytest.raises(RunError, match="is a tokenizer run; a report is of pretraining"):
        read_config(shapes / "tokenizer")


def test_last_checkpoint__is_missing(shapes: Path, tmp_path: Path) -> None:
    config = pretrain_config(shapes / "train", shapes / "tokenizer", tmp_path)
    (tmp_path / "config.yaml").write_text(dump(config))
    with pytest.raises(RunError, match=r"no complete checkpoint yet; go on with: mcbeit train .*config\.yaml --resume"):
        last_checkpoint(tmp_path)


def test_fingerprint__is_of_checkpoint_config_and_measurements(run: Path, tmp_path: Path) -> None:
    first = fingerprint(run)
    assert first["checkpoint"] == "step-00000010"
    assert fingerprint(shutil.copytree(run, tmp_path / "moved")) == first
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    second = fingerprint(run)
    assert {key for key in first if first[key] != second[key]} == {"metrics"}
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    third = fingerprint(run)
    assert {key for key in second if second[key] != third[key]} == {"config"}
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    assert fingerprint(run)["model"] != first["model"]


def test_read_tokenizer__at_its_path(run: Path) -> None:
    found = read_tokenizer(read_config(run), run)
    assert isinstance(found, DiscreteVAE)
    assert found.vocab_size == 16


def test_read_tokenizer__in_the_run_folder_wherever_that_is(shapes: Path, tmp_path: Path) -> None:
    preset = tmp_path / "tokenizer.yaml"
    preset.write_text(dump(tokenizer_config(shapes / "train", tmp_path)))
    config = with_tokenizer(shapes, kind="dvae", path=None, preset=str(preset))
    shutil.copytree(shapes / "tokenizer", tmp_path / "run" / "tokenizer")
    assert read_tokenizer(config, tmp_path / "run").vocab_size == 16


@pytest.mark.parametrize("path", ["random", "gone"])
def test_read_tokenizer__that_is_not_there(shapes: Path, tmp_path: Path, path: str) -> None:
    kind = "vqgan" if path == "random" else "dvae"
    config = with_tokenizer(shapes, kind=kind, path=path)
    with pytest.raises(RunError, match=r"random weights|no trained tokenizer"):
        read_tokenizer(config, tmp_path)
