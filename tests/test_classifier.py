"""The head of finetuning: how it begins, and what it looks at."""

import torch

from mcbeit.classifier import Classifier
from mcbeit.vit import ModelConfig, VisionTransformer

CONFIG = ModelConfig(dim=64, depth=1, num_heads=2, patch_size=4, final_norm="pooled", drop_path=0.5)


def make(**options: float) -> Classifier:
    torch.manual_seed(0)
    return Classifier(VisionTransformer(CONFIG, image_size=8), 100, **options)


def test_head__begins_as_the_official_one() -> None:
    plain, scaled = make(), make(head_init_scale=0.001)
    assert abs(float(plain.head.weight.detach().std()) - 0.02) < 1e-3
    torch.testing.assert_close(scaled.head.weight, plain.head.weight * 0.001)
    assert not scaled.head.bias.any()


def test_forward__scores_the_mean_of_the_patches_in_float32() -> None:
    model, images = make().eval(), torch.randn(3, 3, 8, 8)
    tokens = model.backbone.forward_tokens(images)
    wanted = model.head(model.backbone.fc_norm(tokens[:, 1:].mean(dim=1)))
    torch.testing.assert_close(model(images), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.float32


def test_forward__drops_paths_by_its_dice() -> None:
    model, images = make().train(), torch.randn(2, 3, 8, 8)
    dice = torch.full((2, model.backbone.num_dice), 0.9)
    torch.testing.assert_close(model(images, dice), model(images, dice))


def test_parameters__all_but_the_mask_token_learn() -> None:
    model = make()
    model(torch.randn(2, 3, 8, 8), torch.full((2, model.backbone.num_dice), 0.9)).sum().backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {"backbone.mask_token"}
