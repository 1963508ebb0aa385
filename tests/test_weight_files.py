"""Where weights come from: run folders, .safetensors files, official checkpoints, timm; and files that are none."""

import argparse
import os
import pickle
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from official import official_state, pretrain_checkpoint, same_bits, save
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.beit import Beit

from mcbeit.checkpoint import Checkpoint, CheckpointFolder
from mcbeit.config import dump
from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain_setup import PretrainConfig
from mcbeit.vit import ModelConfig
from mcbeit.weight_conversion import convert_weights
from mcbeit.weight_files import official_preprocess, open_weights, timm_preprocess
from mcbeit.weight_fitting import load_backbone
from mcbeit.weights import read_weights

MODEL = ModelConfig(dim=32, depth=2, num_heads=2, patch_size=4, drop_path=0.2)
TIMM_NAME = "mcbeit_test_beit"


def make_run(folder: Path, *seeds: int) -> Path:
    """A run folder with one checkpoint per seed, at the steps 1, 2, ..."""
    config = PretrainConfig(model=MODEL, preprocess=Preprocess(image_size=16, mean=(0.1, 0.2, 0.3)))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    for step, seed in enumerate(seeds, start=1):
        state = official_state("pretrain", index=False, seed=seed)
        model = {name if "lm_head" in name else f"backbone.{name}": value for name, value in state.items()}
        teacher = {name: value for name, value in state.items() if "lm_head" not in name}
        tensors = {"model": model, "teacher": teacher, "optimizer": {"0.step": torch.ones(1)}}
        CheckpointFolder(folder / "checkpoints").save(Checkpoint(step, tensors, {}))
    return folder


# run folders


def test_open_weights__newest_checkpoint_of_a_run_or_the_one_that_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 5, 6)
    older = run / "checkpoints" / "step-00000001"
    sources = {run: 6, older: 5, older / "model.safetensors": 5, older / "teacher.safetensors": 5}
    for source, seed in sources.items():
        weights = read_weights(source)
        assert torch.equal(weights.tensors["cls_token"], official_state("pretrain", seed=seed)["cls_token"]), source
        assert (weights.layout, weights.model, weights.image_size) == ("mcbeit", MODEL, 16)
        assert weights.preprocess is not None
        assert weights.preprocess.mean == (0.1, 0.2, 0.3)
    loaded = load_backbone(run)
    assert loaded.config == MODEL
    assert loaded.account.counts() == {"loaded": 37, "converted": 0, "resized": 0, "ignored": 2}


def test_open_weights__relative_path_from_inside_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", 0)
    monkeypatch.chdir(run / "checkpoints" / "step-00000001")
    assert read_weights("model.safetensors").model == MODEL


def test_open_weights__folders_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fresh = make_run(tmp_path / "fresh")
    tokenizer = make_run(tmp_path / "tokenizer", 0)
    (tokenizer / "config.yaml").write_text("job: tokenizer\n")
    broken = make_run(tmp_path / "broken", 0)
    (broken / "config.yaml").write_text("job: pretrain\nmodel: {dim: -3}\n")
    damaged = make_run(tmp_path / "damaged", 0) / "checkpoints" / "step-00000001"
    (damaged / "model.safetensors").write_bytes(b"")
    for source, message in (
        (tmp_path / "empty", "is no run: it has no config.yaml; name a run folder, a .safetensors file"),
        (fresh, "has no complete checkpoint yet; go on with: mcbeit train"),
        (tokenizer, "is a tokenizer run, which has no backbone"),
        (broken, "cannot be read: "),
        (damaged, "is not a complete checkpoint"),
        (tmp_path / "typo.pth", "there are no weights at"),
        (
            make_run(tmp_path / "run", 0) / "checkpoints/step-00000001/optimizer.safetensors",
            "holds 1 key that a BEiT backbone does not have: 0.step",
        ),
    ):
        with pytest.raises(WeightsError, match=re.escape(message)):
            read_weights(source)


# safetensors


def test_open_weights__safetensors_without_a_manifest(tmp_path: Path) -> None:
    state = official_state("pretrain", index=False)
    save_file(state, tmp_path / "plain.safetensors")
    weights = read_weights(tmp_path / "plain.safetensors")
    assert same_bits(weights.tensors, state)
    assert weights.preprocess is None


def test_open_weights__the_manifest_tells_what_shapes_do_not(tmp_path: Path) -> None:
    convert_weights(make_run(tmp_path / "run", 0), tmp_path / "w.safetensors", "mcbeit")
    weights = read_weights(tmp_path / "w.safetensors")
    assert weights.model == MODEL  # with the drop path
    assert weights.preprocess == Preprocess(image_size=16, mean=(0.1, 0.2, 0.3))
    (tmp_path / "w.json").unlink()
    inferred = read_weights(tmp_path / "w.safetensors")
    assert (inferred.model.shape, inferred.preprocess) == (MODEL.shape, None)
    assert same_bits(inferred.tensors, weights.tensors)


def test_open_weights__a_manifest_of_other_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 0)
    file = tmp_path / "w.safetensors"
    convert_weights(run, file, "mcbeit")
    save_file(official_state("pretrain", index=False), file)
    with pytest.raises(WeightsError, match=r"is not the file that its manifest 'w\.json' describes"):
        read_weights(file)
    (tmp_path / "w.json").write_text('{"kind": "mcbeit-weights", "format": 7}')
    with pytest.raises(WeightsError, match=r"the manifest '.*w\.json' is damaged"):
        read_weights(file)
    (tmp_path / "w.json").write_text('{"kind": "mcbeit')
    with pytest.raises(WeightsError, match=r"the manifest '.*w\.json' is damaged"):
        read_weights(file)
    (tmp_path / "w.json").write_text('{"some": "other JSON"}')
    assert read_weights(file).preprocess is None


# official checkpoints


@pytest.mark.parametrize(
    ("options", "constants", "crop_fraction"),
    [
        ({}, (0.485, 0.229), 0.875),
        ({"imagenet_default_mean_and_std": False}, (0.5, 0.5), 0.875),
        ({"input_size": 384}, (0.485, 0.229), 1.0),
    ],
)
def test_open_weights__the_options_of_the_official_code_tell_the_preprocessing(
    options: dict[str, Any], constants: tuple[float, float], crop_fraction: float, tmp_path: Path
) -> None:
    file = save(pretrain_checkpoint(official_state("pretrain"), **options), tmp_path / "w.pth")
    found = read_weights(file).preprocess
    assert found is not None
    assert (found.mean[0], found.std[0]) == constants
    assert (found.image_size, found.crop_fraction) == (16, crop_fraction)


@pytest.mark.parametrize("options", [None, {}, {"imagenet_default_mean_and_std": True, "input_size": "large"}])
def test_official_preprocess__without_usable_options(options: Any) -> None:
    assert official_preprocess({"args": options}) is None


class Harmful:
    """What a pickle can do to those who unpickle it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def damaged_files(folder: Path) -> dict[str, Path]:
    """Files that are no weights, by what is wrong with them."""
    whole = save(official_state("pretrain"), folder / "whole.pth").read_bytes()
    save_file(official_state("pretrain", index=False), folder / "whole.safetensors")
    safe = (folder / "whole.safetensors").read_bytes()
    pickled = pickle.dumps({"model": official_state("pretrain"), "more": Harmful()})
    contents = {
        "truncated.pth": whole[: len(whole) // 2],
        "truncated.safetensors": safe[: len(safe) // 2],
        "empty.pth": b"",
        "text.pth": b"an error page of a web server",
        "code.pth": pickled,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save({"model": official_state("pretrain"), "hook": Harmful()}, folder / "hook.pth")
    return {name: folder / name for name in (*contents, "hook.pth")}


@pytest.mark.parametrize("name", ["truncated.pth", "truncated.safetensors", "empty.pth", "text.pth"])
def test_open_weights__damaged_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=name):
        open_weights(damaged_files(tmp_path)[name])


@pytest.mark.parametrize("name", ["code.pth", "hook.pth"])
def test_open_weights__nothing_of_a_pickle_is_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=rf"{name}.*system"):
        open_weights(damaged_files(tmp_path)[name])
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "holds no weights: neither tensors by name nor an entry model, module"),
        ({"epoch": 3, "args": argparse.Namespace()}, "holds no weights"),
        ([torch.zeros(3)], "holds no weights"),
        ({"model": {}}, "holds no weights"),
        ({"model": official_state("pretrain"), "probe": {"w": torch.zeros(2, 2)}}, "under 'probe', which no rule"),
        ({"model": {**official_state("pretrain"), 7: torch.zeros(3)}}, "no tensor among its weights: 7"),
    ],
)
def test_open_weights__checkpoints_of_something_else(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        open_weights(save(value, tmp_path / "w.pth"))


# timm


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that timm finds by TIMM_NAME: the way of a fork that registers a model of its own, without a network."""
    file = tmp_path_factory.mktemp("timm") / "beit.safetensors"
    save_file(official_state("finetune", index=False), file)
    module = types.ModuleType("mcbeit_test_models")
    settings = {
        "input_size": (3, 16, 16),
        "num_classes": 5,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    weights = {f"{TIMM_NAME}.local": {**settings, "file": str(file)}, f"{TIMM_NAME}.lost": {**settings, "file": "gone"}}
    module.default_cfgs = generate_default_cfgs(weights)  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module

    def mcbeit_test_beit(pretrained: bool = False, **options: Any) -> Any:
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.1}
        kind = {"use_abs_pos_emb": False, "use_rel_pos_bias": True}
        return build_model_with_cfg(Beit, TIMM_NAME, pretrained, **shape, **kind, **options)

    mcbeit_test_beit.__module__ = module.__name__
    register_model(mcbeit_test_beit)
    return file


def test_open_weights__timm(timm_file: Path) -> None:
    weights = read_weights(f"timm:{TIMM_NAME}")
    assert same_bits(weights.tensors, load_file(timm_file))
    assert (weights.layout, weights.path, weights.num_classes) == ("timm", None, 5)
    assert weights.preprocess == Preprocess(image_size=16, crop_fraction=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)
    loaded = load_backbone(f"timm:{TIMM_NAME}.local")
    assert loaded.account.counts() == {"loaded": 37, "converted": 0, "resized": 0, "ignored": 2}


def test_open_weights__timm_without_the_weights(timm_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"timm cannot get the weights of 'mcbeit_test_beit\.lost': .* name a file"):
        read_weights(f"timm:{TIMM_NAME}.lost")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "beit_base_patch16_242",
            "timm has no model 'beit_base_patch16_242'; did you mean timm:beit_base_patch16_224?",
        ),
        (
            "beit_base_patch16_224.nothing",
            "timm has no weights 'beit_base_patch16_224.nothing'; it has beit_base_patch16_224.in22k",
        ),
        ("vit_tiny_patch16_224", "'timm:vit_tiny_patch16_224' is a VisionTransformer, not a BEiT; timm has beit"),
        ("", "timm has no model ''"),
    ],
)
def test_open_weights__names_that_timm_has_not(name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        read_weights(f"timm:{name}")


def test_open_weights__deepspeed_folder_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "checkpoint-99").mkdir()
    save({"module": official_state("finetune")}, tmp_path / "checkpoint-99" / "mp_rank_00_model_states.pt")
    assert read_weights("~/checkpoint-99").layout == "official-finetune"
    shutil.rmtree(tmp_path / "checkpoint-99")


@pytest.mark.parametrize(("share", "resize"), [(1.0, "squash"), (0.9, "shorter-side")])
def test_timm_preprocess__squashes_where_the_model_was_trained_so(share: float, resize: str) -> None:
    values = {"input_size": (3, 64, 64), "crop_pct": share, "crop_mode": "squash", "interpolation": "bicubic"}
    found = timm_preprocess({**values, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    assert (found.resize, found.crop_fraction, found.image_size) == (resize, share, 64)
