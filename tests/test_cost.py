"""Costs: the figures of ViT-B/16 by formula and by torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mcbeit.cost import backbone_flops, estimate, head_flops, tokenizer_flops
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.vqgan import GumbelVQGAN, GumbelVQGANConfig

BASE = {"num_patches": 196, "patch_size": 16, "dim": 768, "depth": 12}


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_backbone_flops__are_those_that_torch_counts(size: str) -> None:
    config = ModelConfig(size=size)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = VisionTransformer(config, image_size=224).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.forward_tokens(torch.zeros(1, 3, 224, 224))
    dim, depth, _ = config.shape
    formula = backbone_flops(num_patches=196, patch_size=16, dim=dim, depth=depth)
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_estimate__adds_up_to_144_gflop_for_the_published_recipe() -> None:
    with torch.device("meta"):
        tokenizer = tokenizer_flops(GumbelVQGAN(GumbelVQGANConfig()), 112)
    cost = estimate(**BASE, num_masked=147, vocab_size=8192, tokenizer=tokenizer, masks_per_image=1, has_teacher=False)
    assert cost.backbone == pytest.approx(105.15e9, rel=1e-3)
    assert cost.head == pytest.approx(5.55e9, rel=1e-3)
    assert cost.tokenizer == pytest.approx(33.0e9, rel=2e-3)
    assert cost.total == pytest.approx(144e9, rel=5e-3)
    assert cost.total == sum(cost)


def test_estimate__divides_the_tokenizer_by_masks_and_adds_a_teacher() -> None:
    options = {**BASE, "num_masked": 147, "vocab_size": 8192, "tokenizer": 30e9}
    one = estimate(**options, masks_per_image=1, has_teacher=False)
    four = estimate(**options, masks_per_image=4, has_teacher=True)
    assert four.tokenizer == one.tokenizer / 4
    assert four.teacher == backbone_flops(**BASE) / 4
    assert one.teacher == 0


def test_head_flops__count_masked_patches_only() -> None:
    assert head_flops(num_masked=3, dim=4, vocab_size=5) == 2 * 3 * 4 * 5


def test_tokenizer_flops__grow_with_the_view() -> None:
    model = DiscreteVAE(DiscreteVAEConfig(stride=4, vocab_size=8, dim=8))
    assert tokenizer_flops(model, 32) == pytest.approx(4 * tokenizer_flops(model, 16))
