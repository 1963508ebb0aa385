"""`mcbeit weights` on tokenizers: what their files hold, and the same as safetensors with a manifest."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from official_tokenizers import write_dall_e, write_vqgan, write_vqkd
from safetensors import safe_open

from mcbeit import tokenizer_conversion
from mcbeit.cli.main import cli
from mcbeit.errors import WeightsError
from mcbeit.tokenizer_choice import TokenizerChoice, load_tokenizer
from mcbeit.tokenizer_conversion import convert_tokenizer
from mcbeit.tokenizer_files import is_tokenizer, read_tokenizer
from mcbeit.weights import read_weights


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A published file of each kind."""
    write_vqgan(tmp_path / "vqgan")
    write_vqgan(tmp_path / "ema", gumbel=False)
    write_dall_e(tmp_path / "encoder.pkl")
    write_vqkd(tmp_path / "vqkd.pth")
    names = {"vqgan": "vqgan", "vqgan-ema": "ema", "dall-e": "encoder.pkl", "vqkd": "vqkd.pth"}
    return {kind: tmp_path / name for kind, name in names.items()}


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["weights", *map(str, words)])


@pytest.mark.parametrize("kind", ["vqgan", "vqgan-ema", "dall-e", "vqkd"])
def test_convert__loads_to_the_same_logits_to_the_bit(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    out = tmp_path / "converted.safetensors"
    result = invoke("convert", files[kind], out, "--to", "mcbeit")
    assert result.exit_code == 0, result.output
    assert f"({kind}) -> {out} (mcbeit): " in result.stdout
    assert f"use it with: tokenizer.kind={kind} tokenizer.path={out}" in result.stdout
    images = torch.randn(2, 3, 16, 16)
    before = load_tokenizer(TokenizerChoice(kind=kind, path=str(files[kind])))
    after = load_tokenizer(TokenizerChoice(kind=kind, path=str(out)))
    assert torch.equal(before.code_logits(images), after.code_logits(images))
    assert before.default_temperature == after.default_temperature
    assert is_tokenizer(out)
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert (manifest["kind"], manifest["tokenizer"]) == ("mcbeit-tokenizer", kind)
    with safe_open(out, "pt") as file:
        assert not any(name.startswith(("decoder.", "loss")) for name in file.keys())  # noqa: SIM118  # it is no dict
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["vqgan", "vqgan-ema", "dall-e", "vqkd"])
def test_show__accounts_for_every_key(files: dict[str, Path], kind: str) -> None:
    text = invoke("show", files[kind])
    assert text.exit_code == 0, text.output
    assert f"tokenizer  {kind}\n" in text.stdout
    assert "vocab_size 2" in text.stdout
    found = json.loads(invoke("show", files[kind], "--json").stdout)
    assert found["tokenizer"] == kind
    assert sum(found["account"]["counts"].values()) == len(found["account"]["keys"])
    if kind == "vqgan":
        assert found["account"]["keys"]["loss.discriminator.main.0.weight"]["rule"] == "for training only"
        assert "ignored 3: for decoding only" in text.stdout


def test_convert__of_a_converted_one_is_the_same_file(files: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert_tokenizer(files["vqgan"], first, "mcbeit")
    convert_tokenizer(first, second, "mcbeit")
    assert first.read_bytes() == second.read_bytes()
    convert_tokenizer(first, first, "mcbeit", force=True)  # in its own place
    assert first.read_bytes() == second.read_bytes()


def test_convert__refuses(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert (
        "can only be converted --to mcbeit, found timm" in invoke("convert", files["vqkd"], out, "--to", "timm").stderr
    )
    wide = invoke("convert", files["vqkd"], out, "--to", "mcbeit", "--image-size", 32)
    assert wide.exit_code == 2
    assert "are for backbones; FILE is a tokenizer" in wide.stderr
    assert "FILE is a tokenizer" in invoke("show", files["vqkd"], "--num-heads", 2).stderr
    out.write_bytes(b"mine")
    taken = invoke("convert", files["vqkd"], out, "--to", "mcbeit")
    assert taken.exit_code == 2
    assert "exists; choose another name" in taken.stderr
    assert out.read_bytes() == b"mine"
    with pytest.raises(WeightsError, match="there are no weights of a tokenizer at"):
        convert_tokenizer(tmp_path / "nothing", tmp_path / "x.safetensors", "mcbeit")


def test_convert__says_why_it_cannot_write(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer_conversion, "write_json", full)
    with pytest.raises(WeightsError, match=r"out\.safetensors' cannot be written: No space left on device"):
        convert_tokenizer(files["vqkd"], tmp_path / "out.safetensors", "mcbeit")


def test_read_tokenizer__refuses_other_weights_beside_a_manifest(files: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    convert_tokenizer(files["vqgan"], first, "mcbeit")
    convert_tokenizer(files["vqkd"], second, "mcbeit")
    first.write_bytes(second.read_bytes())
    with pytest.raises(WeightsError, match=r"is not the file that its manifest 'a\.json' describes; convert it again"):
        read_tokenizer(first)
    first.with_suffix(".json").write_text('{"kind": "mcbeit-tokenizer"}')
    with pytest.raises(WeightsError, match=r"(?s)a\.json' is damaged: .*missing key 'sha256'"):
        read_tokenizer(first)
    first.with_suffix(".json").write_text("[]")  # somebody else's
    assert read_tokenizer(first).kind.name == "vqkd"


def test_read_weights__a_tokenizer_is_no_backbone(files: dict[str, Path]) -> None:
    with pytest.raises(WeightsError):
        read_weights(files["vqkd"])
