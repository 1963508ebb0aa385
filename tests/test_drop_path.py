import pytest
import torch

from mcbeit.drop_path import DiceDropPath
from mcbeit.vit import ModelConfig, VisionTransformer


def test_dice_drop_path__leaves_out_rows_below_the_rate_and_scales_the_others() -> None:
    path = DiceDropPath(0.25).train()
    path.dice = torch.tensor([0.0, 0.2499, 0.25, 0.9])
    found = path(torch.ones(4, 2, 3))
    assert found[:, 0, 0].tolist() == pytest.approx([0, 0, 4 / 3, 4 / 3])


def test_dice_drop_path__does_nothing_outside_training_or_at_rate_0() -> None:
    branch = torch.randn(2, 3)
    assert DiceDropPath(0.5).eval()(branch) is branch
    assert DiceDropPath(0.0).train()(branch) is branch


def test_dice_drop_path__does_not_draw_by_itself() -> None:
    with pytest.raises(RuntimeError, match="give them to forward_tokens"):
        DiceDropPath(0.5).train()(torch.ones(1, 1))


def test_forward_tokens__rows_do_not_depend_on_the_batch_around_them() -> None:
    torch.manual_seed(0)
    config = ModelConfig(dim=16, depth=3, num_heads=2, patch_size=4, drop_path=0.6)
    model = VisionTransformer(config, image_size=8).train()
    images, dice = torch.randn(6, 3, 8, 8), torch.rand(6, model.num_dice)
    whole = model.forward_tokens(images, dice=dice)
    parts = [model.forward_tokens(images[rows], dice=dice[rows]) for rows in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    other = model.forward_tokens(images, dice=1 - dice)
    assert not torch.allclose(other, whole)


def test_num_dice__two_for_each_block_and_none_without_drop_path() -> None:
    for rate, wanted in ((0.0, 0), (0.1, 6)):
        config = ModelConfig(dim=16, depth=3, num_heads=2, patch_size=4, drop_path=rate)
        assert VisionTransformer(config, image_size=8).num_dice == wanted
