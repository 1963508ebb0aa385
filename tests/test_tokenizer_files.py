"""Tokenizers that others have trained: their files, key tables and counts, and what their code computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from official_tokenizers import (
    filled,
    foreign,
    vqgan_shapes,
    vqgan_vectors,
    vqgan_yaml,
    vqkd_directions,
    vqkd_shapes,
    write_dall_e,
    write_vqgan,
    write_vqkd,
)
from safetensors.torch import save_file
from torch import nn

from mcbeit.augment import normalise
from mcbeit.config import validate
from mcbeit.dall_e import DallE, DallEConfig
from mcbeit.data import DataConfig
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.masked import ObjectiveConfig
from mcbeit.preprocess import Preprocess
from mcbeit.tokenizer import code_gap, distance_logits
from mcbeit.tokenizer_choice import TokenizerChoice, load_tokenizer, low_precision
from mcbeit.tokenizer_files import is_tokenizer, read_tokenizer
from mcbeit.tokenizer_kinds import KINDS
from mcbeit.tokenizer_plan import check_tokenizer, planned_tokenizer, tokenizer_run
from mcbeit.vqgan import GumbelVQGAN, GumbelVQGANConfig, NearestVQGAN
from mcbeit.vqgan_yaml import read_description
from mcbeit.vqkd import VQKD, VQKDConfig

WRITERS = {
    "vqgan": lambda folder: write_vqgan(folder / "vqgan") and folder / "vqgan",
    "vqgan-ema": lambda folder: write_vqgan(folder / "ema", gumbel=False) and folder / "ema",
    "dall-e": lambda folder: write_dall_e(folder / "encoder.pkl") and folder / "encoder.pkl",
    "vqkd": lambda folder: write_vqkd(folder / "vqkd.pth") and folder / "vqkd.pth",
}


def images_of(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def count(model: nn.Module, without: str = "quantize") -> int:
    return sum(p.numel() for name, p in model.named_parameters() if without not in name)


# Golden sizes and key tables


@pytest.mark.parametrize("gumbel", [True, False])
def test_vqgan__has_the_keys_of_the_published_files(gumbel: bool) -> None:
    with torch.device("meta"):
        model = (GumbelVQGAN if gumbel else NearestVQGAN)(GumbelVQGANConfig())
    table = vqgan_shapes(dim=128, multipliers=(1, 1, 2, 4), blocks=2, embed_dim=256, vocab_size=8192, gumbel=gumbel)
    kind = KINDS["vqgan" if gumbel else "vqgan-ema"]
    needed = {name: shape for name, shape in table.items() if not name.startswith(tuple(kind.ignored))}
    assert shapes_of(model) == needed
    assert count(model.encoder) == 26_345_728


def test_dall_e__has_the_published_size() -> None:
    with torch.device("meta"):
        model = DallE(DallEConfig())
        logits = model.code_logits(torch.zeros(1, 3, 112, 112))
    assert count(model) == 53_786_240
    assert logits.shape == (1, 196, 8192)
    assert model.view_size((14, 14)) == 112
    shapes = shapes_of(model)
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert shapes["blocks.group_4.block_2.res_path.conv_4.w"] == (2048, 512, 1, 1)
    assert {name for name in shapes if "id_path.w" in name} == {
        f"blocks.group_{group}.block_1.id_path.w" for group in (2, 3, 4)
    }
    assert model.blocks["group_1"].get_submodule("block_1").gain == 1 / 64


def test_vqkd__has_the_published_size_and_keys() -> None:
    with torch.device("meta"):
        model = VQKD(VQKDConfig())
        logits = model.code_logits(torch.zeros(1, 3, 224, 224))
    assert count(model) == 86_404_640
    assert logits.shape == (1, 196, 8192)
    assert (model.view_size((14, 14)), model.interpolation) == (224, "bicubic")
    table = vqkd_shapes(dim=768, depth=12, code_dim=32, vocab_size=8192, patch=16, grid=14)
    assert shapes_of(model) == {n: s for n, s in table.items() if not n.startswith(tuple(KINDS["vqkd"].ignored))}
    with pytest.raises(ValueError, match="images of 224 pixels"):
        model.view_size((16, 16))


def test_vqkd_config__wants_whole_patches() -> None:
    with pytest.raises(ConfigError, match="image_size=30 must be a multiple of patch_size=16"):
        validate(VQKDConfig, {"image_size": 30})


# What they compute


@pytest.mark.parametrize("stream", [False, True])
def test_read_tokenizer__gumbel_vqgan_computes_what_the_published_one_does(tmp_path: Path, stream: bool) -> None:
    state = write_vqgan(tmp_path, stream=stream)
    stored = read_tokenizer(tmp_path, kind="vqgan")
    assert stored.config == GumbelVQGANConfig(vocab_size=24, embed_dim=8, dim=32, multipliers=(1, 2), num_blocks=1)
    images = images_of(16)
    vectors = vqgan_vectors(state, images, levels=2, blocks=1)
    expected = nn.functional.conv2d(vectors, state["quantize.proj.weight"], state["quantize.proj.bias"])
    found = stored.build().frozen().code_logits(images)
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_read_tokenizer__ema_vq_prefers_the_nearest_code(tmp_path: Path) -> None:
    state = write_vqgan(tmp_path, gumbel=False)
    model = read_tokenizer(tmp_path).build().frozen()
    assert isinstance(model, NearestVQGAN)
    images = images_of(16)
    vectors = vqgan_vectors(state, images, levels=2, blocks=1).flatten(2).transpose(1, 2)
    squared = torch.cdist(vectors.double(), state["quantize.embedding.weight"].double()).square()
    logits = model.code_logits(images)
    torch.testing.assert_close(logits.double(), -squared, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits.argmax(-1), squared.argmin(-1))  # the official code takes the largest distance
    assert model.default_temperature == code_gap(state["quantize.embedding.weight"])


@pytest.mark.parametrize("stream", [False, True])
def test_read_tokenizer__dall_e_computes_what_the_published_one_does(tmp_path: Path, stream: bool) -> None:
    encoder = write_dall_e(tmp_path / "encoder.pkl", stream=stream)
    stored = read_tokenizer(tmp_path)  # the folder will do
    assert stored.config == DallEConfig(vocab_size=20, dim=8, num_blocks=2)
    model, images = stored.build().frozen(), images_of(16)
    expected = encoder(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.code_logits(images), expected, rtol=1e-4, atol=1e-4)
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4) * 5
    mapped = normalise(pixels, model.mean, model.std)
    torch.testing.assert_close(mapped, pixels / 255 * 0.8 + 0.1)


def test_read_tokenizer__vqkd_computes_what_the_published_one_does(tmp_path: Path) -> None:
    state = write_vqkd(tmp_path / "vqkd.pth")
    stored = read_tokenizer(tmp_path / "vqkd.pth", kind="vqkd")
    assert stored.config == VQKDConfig(vocab_size=24, code_dim=4, dim=64, depth=2, patch_size=4, image_size=16)
    model, images = stored.build().frozen(), images_of(16)
    directions = vqkd_directions(state, images, depth=2, heads=1)
    squared = (directions[:, :, None] - state["quantize.embedding.weight"]).square().sum(-1)
    torch.testing.assert_close(model.code_logits(images), -squared, rtol=1e-3, atol=1e-3)
    assert (model.mean, model.std) == ((0.5,) * 3, (0.5,) * 3)


def test_distance_logits__are_largest_for_the_nearest_code() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    logits = distance_logits(torch.tensor([[[0.9, 0.0]]]), codebook)
    torch.testing.assert_close(logits[0, 0], torch.tensor([-0.81, -0.01, -41.81]))
    assert distance_logits(torch.zeros(1, 1, 2, dtype=torch.bfloat16), codebook.bfloat16()).dtype == torch.float32


def test_code_gap__is_the_median_distance_to_the_next_code() -> None:
    assert code_gap(torch.tensor([[0.0], [1.0], [3.0], [10.0], [10.5]])) == pytest.approx(1.0)
    assert code_gap(torch.zeros(4, 2)) == 1.0
    assert code_gap(torch.ones(1, 2)) == 1.0


def test_low_precision__compares_distances_in_float32(tmp_path: Path) -> None:
    model = read_tokenizer(WRITERS["vqkd"](tmp_path)).build().frozen()
    low, agreement = low_precision(model, images_of(16), torch.bfloat16, 0.0)
    assert low.code_logits(images_of(16).bfloat16()).dtype == torch.float32
    assert agreement > 0.5


# Files


@pytest.mark.parametrize("kind", WRITERS)
def test_read_tokenizer__accounts_for_every_key(tmp_path: Path, kind: str) -> None:
    stored = read_tokenizer(WRITERS[kind](tmp_path))
    assert stored.kind.name == kind
    stored.account.check_complete()
    assert stored.account.counts()["loaded"] == len(stored.tensors)
    assert stored.account.counts()["ignored"] == {"vqgan": 12, "vqgan-ema": 13, "dall-e": 0, "vqkd": 10}[kind]


@pytest.mark.parametrize("kind", WRITERS)
def test_read_tokenizer__refuses_an_unknown_key(tmp_path: Path, kind: str) -> None:
    stored = read_tokenizer(WRITERS[kind](tmp_path))
    path = tmp_path / "more.pth"
    torch.save({"state_dict": {**stored.tensors, "strange.weight": torch.ones(1)}}, path)
    with pytest.raises(WeightsError, match=rf"more\.pth' holds 1 key that a {kind} tokenizer does not have: strange"):
        read_tokenizer(path)


@pytest.mark.parametrize("kind", WRITERS)
def test_read_tokenizer__refuses_a_missing_key_and_another_size(tmp_path: Path, kind: str) -> None:
    stored = read_tokenizer(WRITERS[kind](tmp_path))
    name = [name for name in stored.tensors if name.endswith((".bias", ".b"))][-1]
    torch.save({key: value for key, value in stored.tensors.items() if key != name}, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=rf"less\.pth' is no whole {kind} tokenizer: it lacks {name}"):
        read_tokenizer(tmp_path / "less.pth")
    torch.save({**stored.tensors, name: torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=rf"does not fit a {kind} tokenizer of its sizes: {name} is \[1\], not"):
        read_tokenizer(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("vqgan", "encoder.conv_out.weight"),
        ("dall-e", "blocks.output.conv.w"),
        ("vqkd", "encoder.pos_embed"),
    ],
)
def test_read_tokenizer__refuses_files_without_their_sizes(tmp_path: Path, kind: str, lost: str) -> None:
    stored = read_tokenizer(WRITERS[kind](tmp_path))
    torch.save({key: value for key, value in stored.tensors.items() if key != lost}, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match=f"is no whole {kind} tokenizer: {lost} is missing"):
        read_tokenizer(tmp_path / "less.pth")
    torch.save({**stored.tensors, lost: torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=rf"odd\.pth' (has shapes that no|does not fit a) {kind} tokenizer"):
        read_tokenizer(tmp_path / "odd.pth")


def test_read_tokenizer__half_precision_is_told_and_loaded(tmp_path: Path) -> None:
    state = write_vqkd(tmp_path / "vqkd.pth")
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / "half.pth")
    stored = read_tokenizer(tmp_path / "half.pth")
    assert stored.account.counts()["converted"] == len(stored.tensors)
    assert stored.build().code_logits(images_of(16)).dtype == torch.float32


def test_read_tokenizer__refuses_numbers_that_are_not_finite(tmp_path: Path) -> None:
    state = write_vqkd(tmp_path / "vqkd.pth")
    state["encode_task_layer.2.bias"][1] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"not finite in encode_task_layer\.2\.bias"):
        read_tokenizer(tmp_path / "nan.pth").build()


def test_read_tokenizer__tells_the_kind_that_it_is(tmp_path: Path) -> None:
    path = WRITERS["vqkd"](tmp_path)
    with pytest.raises(WeightsError, match=r"is a vqkd tokenizer, not dall-e; set tokenizer\.kind=vqkd"):
        read_tokenizer(path, kind="dall-e")


def test_read_tokenizer__refuses_what_is_no_tokenizer(tmp_path: Path) -> None:
    torch.save({"model": {"blocks.0.gamma_1": torch.ones(2)}}, tmp_path / "beit.pth")
    with pytest.raises(WeightsError, match=r"no tokenizer that is known \(vqgan, .*\); it has blocks\.0\.gamma_1"):
        read_tokenizer(tmp_path / "beit.pth")
    with foreign("somewhere.Thing") as kinds:
        torch.save(kinds["somewhere.Thing"](), tmp_path / "thing.pkl")
    with pytest.raises(
        WeightsError, match=r"holds an object of 'somewhere\.Thing' where a module of its own should be"
    ):
        read_tokenizer(tmp_path / "thing.pkl")


def test_read_tokenizer__refuses_modules_without_end(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model.add_module("again", model)
    torch.save(model, tmp_path / "loop.pkl")
    with pytest.raises(
        WeightsError, match=r"loop\.pkl' holds an object of 'torch\.nn\.\S+Sequential' where a module of"
    ):
        read_tokenizer(tmp_path / "loop.pkl")


def test_read_tokenizer__names_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no last\.ckpt, model\.ckpt or encoder\.pkl; name the file itself"):
        read_tokenizer(tmp_path)
    with pytest.raises(WeightsError, match="there are no weights of a tokenizer at"):
        read_tokenizer(tmp_path / "nothing.pth")


@pytest.mark.parametrize("name", ["last.ckpt", "model.yaml", ""])
def test_read_tokenizer__vqgan_by_folder_or_by_either_file(tmp_path: Path, name: str) -> None:
    write_vqgan(tmp_path)
    assert read_tokenizer(tmp_path / name).path == tmp_path / "last.ckpt"


def test_read_tokenizer__vqgan_without_yaml_tells_its_sizes_by_its_tensors(tmp_path: Path) -> None:
    write_vqgan(tmp_path)
    expected = read_tokenizer(tmp_path).config
    (tmp_path / "model.yaml").unlink()
    assert read_tokenizer(tmp_path).config == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (vqgan_yaml("taming.models.vqgan.VQModel"), r"class taming\.models\.vqgan\.VQModel, a vqgan-ema, but its wei"),
        (
            vqgan_yaml(ch=64),
            r"does not fit a vqgan tokenizer of its sizes: encoder\.conv_in\.weight is \[32, 3, 3, 3\]",
        ),
        (vqgan_yaml(ch=33), "describes no vqgan tokenizer"),
        (vqgan_yaml(ch="wide"), r"describes no VQGAN: .*model\.params\.ddconfig\.ch"),
        (vqgan_yaml(z_channels=4), "has z_channels 4; here it can only be 8"),
        (vqgan_yaml(attn_resolutions=[64]), r"has attention on the levels \[0\]; here it can only be \[1\]"),
        (vqgan_yaml(double_z=True), "has double_z True"),
        ({"model": {}}, r"describes no VQGAN: .*missing key 'model\.params'"),
        (["a"], "describes no VQGAN: it holds list"),
    ],
)
def test_read_tokenizer__refuses_a_yaml_of_something_else(tmp_path: Path, values: Any, message: str) -> None:
    write_vqgan(tmp_path)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"(?s)" + message):
        read_tokenizer(tmp_path)


def test_read_description__published_configs(tmp_path: Path) -> None:
    whole: dict[str, Any] = {"z_channels": 256, "resolution": 256, "ch": 128, "num_res_blocks": 2}
    gumbel = vqgan_yaml(**whole, ch_mult=[1, 1, 2, 4], attn_resolutions=[32])
    f16 = vqgan_yaml("taming.models.vqgan.VQModel", **whole, ch_mult=[1, 1, 2, 2, 4], attn_resolutions=[16])
    path = tmp_path / "model.yaml"
    for values, kind, config in (
        (gumbel, "vqgan", GumbelVQGANConfig()),
        (f16, "vqgan-ema", GumbelVQGANConfig(multipliers=(1, 1, 2, 2, 4), vocab_size=16384)),
    ):
        values["model"]["params"] |= {"embed_dim": 256, "n_embed": config.vocab_size}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        assert read_description(path).sizes(KINDS[kind], path) == config


def test_read_tokenizer__yaml_is_never_executed(tmp_path: Path) -> None:
    write_vqgan(tmp_path)
    mark = tmp_path / "was-executed"
    (tmp_path / "model.yaml").write_text(f"!!python/object/apply:os.mkdir ['{mark}']", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"model\.yaml' describes no VQGAN"):
        read_tokenizer(tmp_path)
    assert not mark.exists()


# In a run


@pytest.mark.parametrize("kind", WRITERS)
def test_load_tokenizer__every_kind_by_path(tmp_path: Path, kind: str) -> None:
    choice = TokenizerChoice(kind=kind, path=str(WRITERS[kind](tmp_path)))
    tokenizer = load_tokenizer(choice)
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    with torch.device("meta"):
        planned = planned_tokenizer(choice, None)
    assert shapes_of(planned) == shapes_of(tokenizer)
    assert next(planned.parameters()).is_meta
    grid = (16 // tokenizer.stride,) * 2
    check_tokenizer(choice, None, grid, ObjectiveConfig(), 3)
    with pytest.raises(ConfigError, match="does not fit a patch grid of 3 x 4"):
        check_tokenizer(choice, None, (3, 4), ObjectiveConfig(), 3)
    assert tokenizer_run(choice, DataConfig(), Preprocess(), seed=0) is None


@pytest.mark.parametrize("kind", WRITERS)
def test_planned_tokenizer__has_the_published_size_where_no_file_tells_another(kind: str) -> None:
    with torch.device("meta"):
        assert planned_tokenizer(TokenizerChoice(kind=kind), None).vocab_size == 8192


def test_load_tokenizer__random_weights(tmp_path: Path) -> None:
    small = GumbelVQGANConfig(vocab_size=16, embed_dim=32, dim=32, multipliers=(1, 1), num_blocks=1)
    tokenizer = load_tokenizer(TokenizerChoice(kind="vqgan-ema", path="random", vqgan=small))
    assert tokenizer.code_logits(images_of(8)).shape == (2, 16, 16)


# Converted ones


def test_read_tokenizer__safetensors_without_a_manifest(tmp_path: Path) -> None:
    stored = read_tokenizer(WRITERS["vqgan"](tmp_path))
    save_file({name: value.clone() for name, value in stored.tensors.items()}, tmp_path / "a.safetensors")
    assert read_tokenizer(tmp_path / "a.safetensors").config == stored.config


def test_is_tokenizer__by_its_keys(tmp_path: Path) -> None:
    for writer in WRITERS.values():
        assert is_tokenizer(writer(tmp_path))
    torch.save({"model": filled({"blocks.0.attn.qkv.weight": (6, 2)})}, tmp_path / "beit.pth")
    (tmp_path / "page.html").write_text("<html>", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for other in ("beit.pth", "page.html", "nothing.pth", "empty"):
        assert not is_tokenizer(tmp_path / other)
