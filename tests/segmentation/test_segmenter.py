"""The network: UperNet's heads against those of transformers, the pyramid and the taps by hand, the loss."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcbeit.errors import ConfigError
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.segmenter import Pyramid, Segmenter, default_taps, pixel_loss
from mcbeit.segmentation.upernet import ChannelDropout, FCNHead, UperHead
from mcbeit.vit import ModelConfig, VisionTransformer


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """With every number drawn, those of norms too."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.4 + 0.05)
    return module


def maps(dims: tuple[int, ...] = (12, 12, 12, 12), size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, dim, size >> i, size >> i, generator=generator) for i, dim in enumerate(dims)]


def their_head(kind: str, channels: int) -> nn.Module:
    from transformers.models.upernet.configuration_upernet import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    config = UperNetConfig(hidden_size=channels, num_labels=5, auxiliary_channels=channels, auxiliary_in_channels=12)
    return UperNetHead(config, [12] * 4) if kind == "uper" else UperNetFCNHead(config, [12] * 4, in_index=2)


def with_their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        name = name.replace("conv_seg", "classifier").replace(".bn.", ".batch_norm.")
        renamed[re.sub(r"psp_modules\.(\d)\.1", r"psp_modules.\1.1", name)] = value
    return renamed


@pytest.mark.parametrize("kind", ["uper", "fcn"])
@pytest.mark.parametrize("training", [False, True])
def test_heads__equal_those_of_transformers(kind: str, training: bool) -> None:
    head = UperHead([12] * 4, 8, 5) if kind == "uper" else FCNHead(12, 8, 5)
    ours, theirs = drawn(head), their_head(kind, 8)
    theirs.load_state_dict(with_their_names(ours.state_dict()))
    ours.train(training)
    theirs.train(training)
    for head in (ours, theirs):
        for module in head.modules():
            if isinstance(module, nn.Dropout2d | ChannelDropout):
                module.eval()  # transformers has none
    found = ours(maps()) if kind == "uper" else ours(maps()[2])
    torch.testing.assert_close(found, theirs(maps()), rtol=1e-4, atol=1e-5)


def test_heads__have_the_names_and_shapes_of_the_published_checkpoints() -> None:
    shapes = {name: tuple(value.shape) for name, value in UperHead([768] * 4, 768, 150).state_dict().items()}
    assert shapes["psp_modules.3.1.conv.weight"] == (768, 768, 1, 1)
    assert shapes["bottleneck.conv.weight"] == (768, 5 * 768, 3, 3)
    assert shapes["lateral_convs.2.bn.running_mean"] == (768,)
    assert shapes["fpn_convs.0.conv.weight"] == (768, 768, 3, 3)
    assert shapes["fpn_bottleneck.conv.weight"] == (768, 4 * 768, 3, 3)
    assert shapes["conv_seg.weight"] == (150, 768, 1, 1)
    assert FCNHead(768, 256, 150).convs[0].conv.weight.shape == (256, 768, 3, 3)


def test_pyramid__by_hand() -> None:
    pyramid = drawn(Pyramid(6)).eval()
    ones = [torch.full((1, 6, 4, 4), float(i + 1)) for i in range(4)]
    found = pyramid(ones)
    assert [tuple(one.shape[-2:]) for one in found] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert torch.equal(found[2], ones[2])
    assert torch.equal(found[3], torch.full((1, 6, 2, 2), 4.0))
    up = pyramid.fpn2[0]
    by_hand = torch.einsum("io,i->o", up.weight[:, :, 0, 0], torch.full((6,), 2.0)) + up.bias
    torch.testing.assert_close(found[1][0, :, 0, 0], by_hand)
    first, norm, _, second = pyramid.fpn1
    expected = second(F.gelu(norm(first(ones[0]))))
    assert torch.equal(found[0], expected)


@pytest.mark.parametrize(
    ("depth", "taps"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (8, (1, 3, 5, 7)), (4, (0, 1, 2, 3))]
)
def test_default_taps(depth: int, taps: tuple[int, ...]) -> None:
    assert default_taps(depth) == taps


def test_default_taps__needs_four_blocks() -> None:
    with pytest.raises(ConfigError, match="takes the outputs of 4 blocks, but the model has 3"):
        default_taps(3)


SMALL = ModelConfig(
    dim=24,
    depth=4,
    num_heads=2,
    patch_size=4,
    init="xavier",
    bias_tables="per-block",
    final_norm="pooled",
    drop_path=0.2,
)


def segmenter(num_classes: int = 5) -> Segmenter:
    torch.manual_seed(0)
    backbone = VisionTransformer(SMALL, image_size=32)
    taps = {"taps": (0, 1, 2, 3), "channels": 8, "auxiliary_channels": 8, "auxiliary_weight": 0.4}
    return Segmenter(backbone, num_classes, **taps)


def test_backbone__maps_are_the_raw_outputs_of_blocks_in_their_places() -> None:
    model = segmenter().eval().backbone
    images = torch.randn(2, 3, 32, 32)
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = model.forward_maps(images, (1, 3))
    assert len(found) == 2
    for one, block in zip(found, (1, 3), strict=True):
        assert one.shape == (2, 24, 8, 8)
        assert torch.equal(one[:, :, 2, 5], outputs[block][:, 1 + 2 * 8 + 5])  # no norm, after the cls token
    outputs.clear()
    assert torch.equal(model.forward_tokens(images), outputs[-1])  # whose final norm is that of pooled tokens


def test_segmenter__scores_every_pixel_and_all_of_it_learns() -> None:
    model = segmenter()
    images, dice = torch.randn(2, 3, 32, 32), torch.rand(2, model.num_dice)
    main, auxiliary = model(images, dice)
    assert (main.shape, auxiliary.shape) == ((2, 5, 32, 32), (2, 5, 8, 8))
    model.loss((main, auxiliary), torch.randint(0, 5, (2, 32, 32))).backward()
    unmoved = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert unmoved == []
    assert model.eval().score(images).shape == (2, 5, 32, 32)


def test_dropout__leaves_out_the_channels_that_the_dice_say() -> None:
    dropout, features = ChannelDropout(0.5), torch.ones(2, 3, 4, 4)
    dropout.dice = torch.tensor([[0.4, 0.5, 0.9], [0.1, 0.2, 0.3]])
    assert dropout(features)[:, :, 0, 0].tolist() == [[0.0, 2.0, 2.0], [0.0, 0.0, 0.0]]
    assert torch.equal(dropout.eval()(features), features)
    model = segmenter().train()
    images, dice = torch.randn(2, 3, 32, 32), torch.rand(2, model.num_dice)
    one, two = model(images, dice), model(images, dice)
    assert torch.equal(one[0], two[0])  # nothing else is drawn
    with pytest.raises(RuntimeError, match="needs dice in training"):
        model(images)


def test_pixel_loss__divides_by_all_pixels_as_published() -> None:
    scores = torch.zeros(1, 4, 2, 2)
    labels = torch.tensor([[[0, 1], [IGNORED, IGNORED]]])
    assert pixel_loss(scores, labels) == pytest.approx(torch.log(torch.tensor(4.0)) * 2 / 4)
    fine = torch.full((1, 8, 8), 3)
    fine[:, 4:] = 0
    coarse = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(F.interpolate(coarse, size=(8, 8), mode="bilinear"), fine)
    assert pixel_loss(coarse, fine) == pytest.approx(expected.item(), rel=1e-5)


def test_loss__counts_the_auxiliary_head_by_its_weight() -> None:
    model, labels = segmenter(4), torch.zeros(1, 8, 8, dtype=torch.int64)
    main, auxiliary = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 2)
    assert model.loss((main, auxiliary), labels).item() == pytest.approx(1.4 * torch.log(torch.tensor(4.0)).item())
