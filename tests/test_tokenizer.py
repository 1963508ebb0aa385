"""The tokenizer protocol, the discrete VAE, the VQGAN encoder, and how their temperature is found."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import RunError
from mcbeit.masked import ObjectiveConfig
from mcbeit.tokenizer import count_codes, flatten_cells, perplexity
from mcbeit.tokenizer_choice import calibrate_temperature, choose_temperature, low_precision, mean_entropy
from mcbeit.vqgan import Downsample, GumbelVQGAN, GumbelVQGANConfig

SMALL = GumbelVQGANConfig(vocab_size=40, embed_dim=32, dim=32, multipliers=(1, 1, 2), num_blocks=1)


def logits_of(spread: float = 1.0, codes: int = 64) -> torch.Tensor:
    return spread * torch.randn(4, 16, codes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 7, 8, 14, 16])
def test_discrete_vae__has_any_stride(stride: int) -> None:
    model = DiscreteVAE(DiscreteVAEConfig(stride=stride, vocab_size=11, dim=8))
    images = torch.randn(2, 3, 3 * stride, 3 * stride)
    assert model.code_logits(images).shape == (2, 9, 11)
    assert model.reconstruct(images).shape == images.shape
    assert model.view_size((3, 3)) == 3 * stride


def test_discrete_vae__decodes_a_choice_of_codes_in_row_major_order() -> None:
    torch.manual_seed(0)
    model = DiscreteVAE(DiscreteVAEConfig(stride=2, vocab_size=5, dim=8, num_blocks=0)).eval()
    weights = torch.zeros(1, 16, 5)
    weights[..., 0] = 1
    base = model.decode(weights, (4, 4))
    weights[0, 3] = torch.tensor([0.0, 1, 0, 0, 0])  # first row, last column
    changed = (model.decode(weights, (4, 4)) - base).abs().sum(dim=(0, 1))
    assert changed[:2, 6:].min() > 0
    assert changed[5:, :3].max() == 0


def test_gumbel_vqgan__has_the_published_size() -> None:
    with torch.device("meta"):
        model = GumbelVQGAN(GumbelVQGANConfig())
        logits = model.code_logits(torch.zeros(1, 3, 112, 112))
    assert sum(p.numel() for p in model.encoder.parameters()) == 26_345_728
    assert len(model.encoder.state_dict()) == 126
    assert logits.shape == (1, 196, 8192)
    assert model.view_size((14, 14)) == 112
    assert model.default_temperature == 4.0
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (256, 512, 3, 3)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.3.block.0.nin_shortcut.weight"] == (512, 256, 1, 1)
    assert shapes["encoder.down.3.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert "encoder.down.2.downsample.conv.weight" in shapes
    assert "encoder.mid.attn_1.q.bias" in shapes
    assert shapes["quantize.proj.weight"] == (8192, 256, 1, 1)
    assert shapes["quant_conv.weight"] == (256, 256, 1, 1)


def test_downsample__pads_right_and_bottom_only() -> None:
    layer = Downsample(1)
    with torch.no_grad():
        assert layer.conv.bias is not None
        layer.conv.bias.zero_()
        layer.conv.weight.zero_()[0, 0, 0, 0] = 1  # looks at the top left of its window
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(layer(image)[0, 0], image[0, 0, ::2, ::2])


def test_gumbel_vqgan__has_codes_in_row_major_order() -> None:
    torch.manual_seed(0)
    model = GumbelVQGAN(SMALL).frozen()
    cells = torch.arange(6.0).view(1, 1, 2, 3)
    assert flatten_cells(cells)[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert model.code_logits(torch.randn(1, 3, 12, 12)).shape == (1, 9, 40)


def test_view_size__refuses_what_does_not_fit() -> None:
    model = DiscreteVAE(DiscreteVAEConfig(stride=4, vocab_size=4, dim=8))
    model.image_size = 28
    assert model.view_size((7, 7)) == 28
    with pytest.raises(ValueError, match=r"one code per 4 pixels of images of 28 pixels, which does not fit .* 8 x 8"):
        model.view_size((8, 8))


def test_perplexity__is_the_number_of_codes_in_use() -> None:
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 0.0])) == pytest.approx(2)
    assert perplexity(torch.ones(7)) == pytest.approx(7)
    assert perplexity(torch.zeros(3)) == pytest.approx(1)
    assert count_codes(torch.eye(3)[None]).tolist() == [1, 1, 1]


@given(goal=st.floats(1.5, 60), spread=st.sampled_from([0.01, 1.0, 300.0]))
def test_calibrate_temperature__reaches_the_perplexity(goal: float, spread: float) -> None:
    logits = logits_of(spread)
    temperature = calibrate_temperature(logits, goal)
    assert math.exp(mean_entropy(logits, temperature)) == pytest.approx(goal, rel=1e-2)


def test_calibrate_temperature__refuses_to_end_on_a_bound() -> None:
    for goal in (64.5, 1000.0):
        with pytest.raises(RunError, match="no temperature between"):
            calibrate_temperature(logits_of(), goal)
    with pytest.raises(RunError, match="no temperature between"):  # every choice is equal at any temperature
        calibrate_temperature(torch.zeros(1, 4, 8), 4.0)


def test_choose_temperature__takes_the_given_the_calibrated_or_the_default() -> None:
    tokenizer, logits = DiscreteVAE(DiscreteVAEConfig(stride=2, vocab_size=64, dim=8)), logits_of(10.0)
    tokenizer.default_temperature = 2.5
    assert choose_temperature(tokenizer, logits, ObjectiveConfig()) == 2.5
    assert choose_temperature(tokenizer, logits, ObjectiveConfig(temperature=0.7)) == 0.7
    found = choose_temperature(tokenizer, logits, ObjectiveConfig(target_perplexity=4.0))
    assert math.exp(mean_entropy(logits, found)) == pytest.approx(4, rel=1e-2)


def test_choose_temperature__refuses_uniform_targets_and_collapsed_codes() -> None:
    tokenizer = DiscreteVAE(DiscreteVAEConfig(stride=2, vocab_size=64, dim=8))
    with pytest.raises(RunError, match="at temperature 10000 the targets are uniform"):
        choose_temperature(tokenizer, logits_of(), ObjectiveConfig(temperature=1e4))
    hard = ObjectiveConfig(targets="hard", temperature=1e4)
    assert choose_temperature(tokenizer, logits_of(), hard) == 1.0  # not used, so not refused either
    one_code = logits_of()
    one_code[..., 7] = 100
    with pytest.raises(RunError, match="the tokenizer has collapsed"):
        choose_temperature(tokenizer, one_code, ObjectiveConfig(temperature=1.0))


def test_low_precision__is_used_only_where_codes_agree() -> None:
    torch.manual_seed(0)
    model, images = GumbelVQGAN(SMALL).frozen(), torch.randn(2, 3, 16, 16)
    model.quantize["proj"].bias.fill_(100)  # bf16 cannot tell logits around 100 apart
    same, share = low_precision(model, images, torch.float32, 1.0)
    assert (next(same.parameters()).dtype, share) == (torch.float32, 1.0)
    before = copy.deepcopy(model.state_dict())
    low, share = low_precision(model, images, torch.bfloat16, 0.0)
    assert next(low.parameters()).dtype == torch.bfloat16
    assert 0 <= share < 1
    exact, again = low_precision(model, images, torch.bfloat16, 1.0)
    assert again == share
    assert all(torch.equal(tensor, before[name]) for name, tensor in exact.state_dict().items())
