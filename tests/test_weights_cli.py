"""`mcbeit weights`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from official import Shape, official_state, pretrain_checkpoint, same_bits, save
from official_detectors import checkpoint_of, official_state_of, small_detector

from mcbeit.cli.main import cli


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["weights", *map(str, arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(pretrain_checkpoint(official_state("pretrain")), tmp_path / "checkpoint-799.pth")


def test_show__the_model_and_every_key(file: Path) -> None:
    result = call("show", file)
    assert (result.exit_code, result.stderr) == (0, "")
    first, *lines = result.stdout.splitlines()
    assert first == str(file)
    facts = {line[2:14].strip(): line[14:] for line in lines[:8]}
    assert facts["layout"] == "official-pretrain, under 'model'"
    assert facts["model"] == "2 blocks, width 32, 2 heads, MLP 128"
    assert facts[""] == "relative positions, one table; layer scale; norm of every token"
    assert facts["images"] == "16 px; 4 x 4 patches of 4 px"
    assert facts["heads"] == "16 codes"
    assert facts["numbers"].startswith("27,800 in 39 tensors (39 float32), file of 0.1 MB")
    assert facts["preprocess"].startswith("16 px of 0.875, bicubic, mean 0.485, 0.456, 0.406")
    assert facts["account"] == "44 keys: 37 loaded, 7 ignored"
    keys = lines[8:]
    assert keys[0] == "loaded 37"
    assert "  blocks.*.attn.qkv.weight  (2 blocks)" in keys
    assert keys[keys.index("ignored 1: index buffer, computed anew") + 1] == "  rel_pos_bias.relative_position_index"
    assert sum(int(line.partition("(")[2].split()[0]) if "(" in line else 1 for line in keys if line[0] == " ") == 44


def test_show__finetuned_in_fp16_at_another_size(tmp_path: Path) -> None:
    state = {key: value.half() for key, value in official_state("finetune", index=False).items()}
    result = call("show", save({"module": state}, tmp_path / "w.pt"), "--image-size", "24")
    assert "a table per block; layer scale; norm of pooled tokens" in result.stdout
    assert "16 px, loaded for 24 px" in result.stdout
    assert (
        "resized 2: bias table, 4 x 4 to 6 x 6 patches on a geometric progression; float16 to float32" in result.stdout
    )
    assert result.stdout.splitlines()[-1] == ("starts anew, the file has none, only masked images need it: mask_token")


def test_show__json(file: Path) -> None:
    found = json.loads(call("show", file, "--json").stdout)
    assert (found["layout"], found["image_size"], found["vocab_size"]) == ("official-pretrain", 16, 16)
    assert found["dtypes"] == {"float32": 39}
    assert found["account"]["counts"] == {"loaded": 37, "converted": 0, "resized": 0, "ignored": 7}
    assert found["account"]["keys"]["blocks.1.gamma_2"] == {"fate": "loaded", "rule": ""}
    assert found["account"]["keys"]["args"]["rule"] == "no weights, beside them"


def test_show__num_heads(tmp_path: Path) -> None:
    state = official_state("pretrain", Shape(dim=48), absolute=True, relative=False)
    file = save(state, tmp_path / "w.pth")
    failed = call("show", file)
    assert (failed.exit_code, "Say it: --num-heads" in failed.stderr) == (2, True)
    assert "width 48, 3 heads" in call("show", file, "--num-heads", "3").stdout


def test_show__a_mistake_is_one_message(tmp_path: Path) -> None:
    state = {**official_state("pretrain"), "decoder.weight": torch.zeros(2)}
    for source, message in (
        (tmp_path / "typo.pth", "there are no weights at"),
        (save(state, tmp_path / "w.pth"), "holds 1 key that a BEiT backbone does not have: decoder.weight"),
    ):
        result = call("show", source)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert message in result.stderr


def test_convert__there_and_back(file: Path, tmp_path: Path) -> None:
    ours, back = tmp_path / "beit.safetensors", tmp_path / "back.pth"
    result = call("convert", file, ours, "--to", "mcbeit")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{file} (official-pretrain) -> {ours} (mcbeit): 39 tensors, 0.1 MB\n"
    assert call("convert", ours, back, "--to", "official-pretrain").exit_code == 0
    assert same_bits(torch.load(back, weights_only=True)["model"], official_state("pretrain"))
    again = call("convert", ours, back, "--to", "official-pretrain")
    assert (again.exit_code, "overwrite it with --force" in again.stderr) == (2, True)
    assert call("convert", ours, back, "--to", "official-pretrain", "--force").exit_code == 0


def test_convert__to_another_size(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "large.safetensors"
    result = call("convert", file, out, "--to", "timm", "--image-size", "24")
    assert result.stdout.splitlines()[1].startswith("resized, bias table, 4 x 4 to 6 x 6 patches")
    assert result.stdout.splitlines()[-1].startswith(
        "load into: timm.create_model('beit_base_patch16_224', img_size=24"
    )


def test_show__a_detector(tmp_path: Path) -> None:
    state = official_state_of(small_detector())
    detector = save(checkpoint_of(state), tmp_path / "model_final.pth")
    result = call("show", detector)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    facts = {line[2:14].strip(): line[14:] for line in lines[1:8]}
    assert facts["model"] == "Mask R-CNN: 8 blocks, width 32, 2 heads, MLP 128"
    assert facts[""] == "two tables; layer scale; windows of 4 patches"
    assert facts["images"] == "128 px, the longer side; 8 x 8 patches of 16 px"
    assert facts["heads"] == "3 classes; fpn pyramid of 16 channels"
    assert facts["preprocess"] == "mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"
    place = lines.index("converted 2: the background first, which there is the last class")
    assert lines[place + 1] == "  roi_heads.box_predictor.cls_score.weight"
    told = json.loads(call("show", detector, "--json").stdout)
    assert (told["num_classes"], told["window"]) == (3, 4)
    assert set(told["account"]["keys"]) == {*state, "trainer", "iteration"}
    refused = call("show", detector, "--image-size", "64")
    assert refused.exit_code == 2
    assert "are for backbones; FILE is a detector" in refused.stderr
    assert "is a detector, whose backbone no other job can take" in call(
        "convert", detector, tmp_path / "out.safetensors", "--to", "mcbeit"
    ).stderr  # fmt: skip
