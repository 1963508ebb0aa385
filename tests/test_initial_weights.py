"""Continued pretraining: from any weights, on another size, with everything told; and what does not agree refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from official import Shape, official_state, pretrain_checkpoint, same_bits, save
from tiny import pretrain_config, tokenizer_config, write_shapes

from mcbeit.checkpoint import load_checkpoint
from mcbeit.classifier import Classifier
from mcbeit.config import dump, validate
from mcbeit.errors import ConfigError, RunError, WeightsError
from mcbeit.initial_weights import model_for, start_from
from mcbeit.jobs import load_job
from mcbeit.masked import MaskedImageModel, ObjectiveConfig
from mcbeit.preprocess import Preprocess
from mcbeit.pretrain import pretrain
from mcbeit.pretrain_setup import PretrainConfig, build, with_model
from mcbeit.relative_position import resize_table
from mcbeit.sources import open_source
from mcbeit.tokenizer_training import train_tokenizer
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.weight_conversion import convert_weights

TINY = ModelConfig(dim=32, depth=2, num_heads=2, patch_size=4)
TABLE = "rel_pos_bias.relative_position_bias_table"


def make_model(config: ModelConfig = TINY, *, image_size: int = 16, vocab_size: int = 16) -> MaskedImageModel:
    return MaskedImageModel(VisionTransformer(config, image_size=image_size), vocab_size, ObjectiveConfig())


def pretrain_file(folder: Path, **options: Any) -> Path:
    return save(pretrain_checkpoint(official_state("pretrain", **options)), folder / "checkpoint-799.pth")


# start_from


def test_start_from__takes_backbone_mask_token_and_head(tmp_path: Path) -> None:
    file, model = pretrain_file(tmp_path), make_model()
    notes = start_from(str(file), model, TINY, Preprocess(image_size=16))
    state = official_state("pretrain", index=False)
    own = {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}
    assert same_bits(own, state)
    assert re.fullmatch(rf"starts from {file} \(SHA-256 [0-9a-f]{{64}}\): 44 keys: 39 loaded, 5 ignored", notes[0])
    assert notes[1:] == ["the vocabulary head of 16 codes goes on, which is right for the same tokenizer only"]


def test_start_from__another_vocabulary_and_another_size(tmp_path: Path) -> None:
    file, model = pretrain_file(tmp_path), make_model(image_size=24, vocab_size=7)
    head = model.lm_head.weight.detach().clone()
    notes = start_from(str(file), model, TINY, Preprocess(image_size=24))
    assert "36 loaded, 1 resized, 7 ignored" in notes[0]
    assert notes[1] == "the vocabulary head starts anew: the weights have 16 codes, the tokenizer 7"
    assert torch.equal(model.lm_head.weight, head)
    table = resize_table(official_state("pretrain")[TABLE], (4, 4), (6, 6))
    assert torch.equal(model.backbone.state_dict()[TABLE], table)


def test_start_from__finetuned_weights(tmp_path: Path) -> None:
    file = save({"model": official_state("finetune")}, tmp_path / "finetuned.pth")
    config = TINY.model_copy(update={"bias_tables": "per-block"})
    model = make_model(config)
    mask_token = model.backbone.mask_token.detach().clone()
    notes = start_from(str(file), model, config, Preprocess(image_size=16))
    assert notes[0].endswith("starts anew: mask_token, norm.weight, norm.bias")
    assert notes[1] == "the vocabulary head starts anew: the weights have none"
    assert torch.equal(model.backbone.mask_token, mask_token)  # drawn, not zero
    assert (model.backbone.norm.weight == 1).all()
    name = "blocks.1.attn.relative_position_bias_table"
    assert torch.equal(model.backbone.state_dict()[name], official_state("finetune")[name])


@pytest.mark.parametrize(
    ("num_classes", "note"),
    [
        (5, "the classifier of 5 classes goes on, which is right for the same images only"),
        (7, "the classifier starts anew: the weights have 5 classes, the images 7"),
    ],
)
def test_start_from__a_classifier_of_as_many_classes_goes_on(tmp_path: Path, num_classes: int, note: str) -> None:
    file = save({"model": official_state("finetune")}, tmp_path / "finetuned.pth")
    config = TINY.model_copy(update={"bias_tables": "per-block", "final_norm": "pooled"})
    model = Classifier(VisionTransformer(config, image_size=16), num_classes)
    assert start_from(str(file), model, config, Preprocess(image_size=16))[1] == note
    state = official_state("finetune")
    assert torch.equal(model.backbone.state_dict()["fc_norm.weight"], state["fc_norm.weight"])
    assert torch.equal(model.head.weight, state["head.weight"]) == (num_classes == 5)


def test_start_from__tells_another_normalisation(tmp_path: Path) -> None:
    notes = start_from(str(pretrain_file(tmp_path)), make_model(), TINY, Preprocess(image_size=16, mean=(0.5,) * 3))
    assert notes[2] == "preprocess.mean is [0.5, 0.5, 0.5], the weights come from [0.485, 0.456, 0.406]"
    assert len(notes) == 3


# the model of the config


def test_model_for__takes_what_the_config_leaves_open(tmp_path: Path) -> None:
    shape = Shape(dim=192, depth=3, heads=3)
    file = pretrain_file(tmp_path, shape=shape, absolute=True, layer_scale=False)
    found = model_for(str(file), ModelConfig(drop_path=0.2, position="relative+sincos"))
    assert found.shape == (192, 3, 3)
    assert (found.patch_size, found.position, found.layer_scale, found.drop_path) == (4, "relative+sincos", 0.0, 0.2)
    assert found.final_norm == "tokens"
    assert model_for(str(file), found) == found
    finetuned = save(official_state("finetune"), tmp_path / "finetuned.pth")
    found = model_for(str(finetuned), ModelConfig())
    assert (found.bias_tables, found.final_norm) == ("per-block", "tokens")


def test_model_for__size_of_a_run(tmp_path: Path) -> None:
    shape = Shape(dim=192, depth=12, heads=3)
    file = pretrain_file(tmp_path, shape=shape)
    found = model_for(str(file), ModelConfig())
    assert (found.size, found.shape) == ("tiny", (192, 12, 3))


def test_model_for__without_weights_is_the_config() -> None:
    model = ModelConfig(size="tiny")
    assert model_for(None, model) is model


def test_model_for__names_every_key_that_does_not_agree(tmp_path: Path) -> None:
    file = pretrain_file(tmp_path)
    asked = ModelConfig(size="tiny", patch_size=16, position="relative+learned", layer_scale=0.0, mlp_ratio=2.0)
    with pytest.raises(ConfigError) as caught:
        model_for(str(file), asked)
    assert str(caught.value).splitlines() == [
        f"the model of the config is not that of init={file}:",
        "  model.dim: 192 (by model.size=tiny) in the config, 32 in the weights",
        "  model.depth: 12 (by model.size=tiny) in the config, 2 in the weights",
        "  model.num_heads: 3 (by model.size=tiny) in the config, 2 in the weights",
        "  model.mlp_ratio: 2.0 in the config, 4.0 in the weights",
        "  model.patch_size: 16 in the config, 4 in the weights",
        "  model.position: relative+learned in the config, relative in the weights",
        "  model.layer_scale: 0.0 in the config, 0.1 in the weights",
        "set these keys to what the weights have, or leave them out to have them taken from the weights",
    ]


def test_model_for__num_heads_where_the_file_does_not_tell(tmp_path: Path) -> None:
    file = pretrain_file(tmp_path, shape=Shape(dim=48), absolute=True, relative=False)
    with pytest.raises(WeightsError, match=r"Say it: --num-heads, or model\.num_heads in a config"):
        model_for(str(file), ModelConfig())
    assert model_for(str(file), ModelConfig(num_heads=3)).shape == (48, 2, 3)


def test_pretrain_config__refuses_the_norm_of_finetuned_models() -> None:
    with pytest.raises(ConfigError, match=r"set model\.final_norm=tokens"):
        validate(PretrainConfig, {"model": {"final_norm": "pooled"}})


# whole runs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` and `tokenizer/`, a tokenizer of 16 codes."""
    folder = tmp_path_factory.mktemp("shapes")
    optim = {"steps": 60, "batch_size": 8, "lr": 1e-2, "weight_decay": 0, "warmup_epochs": 1}
    train_tokenizer(tokenizer_config(write_shapes(folder / "images"), folder / "tokenizer", optim=optim))
    return folder


def continued(shapes: Path, run: Path, init: Path | str, **changes: Any) -> PretrainConfig:
    changes = {"model": {}, "optim": {"steps": 1, "batch_size": 8, "lr": 1e-3}, **changes}
    return pretrain_config(shapes / "images", shapes / "tokenizer", run, init=str(init), **changes)


def test_pretrain__from_a_file_then_from_its_own_run(shapes: Path, tmp_path: Path) -> None:
    file = pretrain_file(tmp_path)
    summary = pretrain(continued(shapes, tmp_path / "one", file))
    assert summary["init"][0].startswith(f"starts from {file} (SHA-256 ")
    stored = load_job(str(tmp_path / "one" / "config.yaml"))
    assert isinstance(stored, PretrainConfig)
    assert (stored.init, stored.model.shape) == (str(file), (32, 2, 2))
    checkpoint = load_checkpoint(tmp_path / "one" / "checkpoints" / "step-00000001")
    file.unlink()  # a run that has begun does not need it
    assert pretrain(stored, resume=True) == summary
    again = with_model(continued(shapes, tmp_path / "two", tmp_path / "one"))
    parts = build(again, open_source(str(shapes / "images")))
    assert same_bits(dict(parts.model.state_dict()), checkpoint.tensors["model"])
    with pytest.raises(RunError, match="init: "):
        pretrain(stored.model_copy(update={"init": str(tmp_path / "other.pth")}), resume=True)


def test_pretrain__checks_the_weights_before_any_work(shapes: Path, tmp_path: Path) -> None:
    closed = validate(ModelConfig, {**TINY.model_dump(), "depth": 3})
    file = pretrain_file(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.depth: 3 in the config, 2 in the weights"):
        pretrain(continued(shapes, tmp_path / "run", file, model=closed))
    with pytest.raises(WeightsError, match="there are no weights at"):
        pretrain(continued(shapes, tmp_path / "run", tmp_path / "typo.pth", model=closed))
    assert not (tmp_path / "run").exists()


def test_pretrain__the_teacher_starts_from_the_weights_too(shapes: Path, tmp_path: Path) -> None:
    convert_weights(pretrain_file(tmp_path), tmp_path / "w.safetensors", "mcbeit")
    objective = {"target_perplexity": 2, "affinity": "ema"}
    config = continued(shapes, tmp_path / "run", tmp_path / "w.safetensors", objective=objective, model=TINY)
    parts = build(config, open_source(str(shapes / "images")))
    assert parts.state.teacher is not None
    assert torch.equal(parts.state.teacher.state_dict()[TABLE], official_state("pretrain")[TABLE])


def test_load_job__shows_the_model_of_the_weights(tmp_path: Path) -> None:
    file = pretrain_file(tmp_path)
    (tmp_path / "config.yaml").write_text(f"init: {file}\npreprocess: {{image_size: 16}}\n")
    shown = load_job(str(tmp_path / "config.yaml"))
    assert isinstance(shown, PretrainConfig)
    assert "dim: 32" in dump(shown)
    with pytest.raises(ConfigError, match=r"model\.dim: 192 \(by model\.size=tiny\) in the config, 32 in the weights"):
        load_job("mcbeit-tiny", [f"init={file}"])
    with pytest.raises(WeightsError, match="there are no weights at"):
        load_job("mcbeit-tiny", [f"init={tmp_path / 'typo.pth'}"])


def test_summary__is_json(shapes: Path, tmp_path: Path) -> None:
    pretrain(continued(shapes, tmp_path / "run", pretrain_file(tmp_path), preprocess={"image_size": 24}))
    found = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "1 resized" in found["init"][0]
