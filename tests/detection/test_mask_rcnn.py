from typing import Any

import pytest
import torch
from detecting import scene, tiny_detector
from torch import Tensor, nn

from mcbeit.augment import normalise
from mcbeit.config import validate
from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.errors import ConfigError
from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig


def make_dice(model: MaskRCNN, batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, model.num_dice, generator=torch.Generator().manual_seed(seed))


def test_mask_rcnn__learns_one_image() -> None:
    torch.manual_seed(0)
    model = tiny_detector().train()
    image, target = scene((10, 12, 40, 44))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    totals = []
    for step in range(24):
        losses = model(image[None], [target], make_dice(model, 1, step))
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert losses.keys() == {"objectness", "proposal_box", "class", "box", "mask"}
    assert totals[-1] < 0.6 * totals[0]
    assert "masks" in target
    assert target["labels"].tolist() == [1]  # not shifted in the caller's


@pytest.mark.parametrize("pyramid", ["fpn", "simple"])
def test_mask_rcnn__images_without_anything_have_finite_losses_and_all_gradients(pyramid: str) -> None:
    """DistributedDataParallel waits for the gradient of every parameter."""
    torch.manual_seed(0)
    model = tiny_detector(pyramid=pyramid).train()
    image, target = scene()
    losses = model(image[None], [target], make_dice(model, 1))
    assert losses["mask"] == losses["box"] == losses["proposal_box"] == 0
    torch.stack(list(losses.values())).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)
    state = model.state_dict()
    assert all(bool(value.isfinite().all()) for value in state.values())  # running statistics too


def test_mask_rcnn__a_batch_may_mix_full_and_empty_images() -> None:
    torch.manual_seed(0)
    model = tiny_detector().train()
    (full, marked), (empty, nothing) = scene((4, 4, 30, 30), (34, 20, 60, 62)), scene()
    losses = model(torch.stack([full, empty]), [marked, nothing], make_dice(model, 2))
    assert all(loss > 0 for loss in losses.values())


def test_mask_rcnn__its_dice_decide_all_that_is_random() -> None:
    torch.manual_seed(0)
    model = tiny_detector(drop_path=0.3, region_samples=8).train()
    image, target = scene((4, 4, 30, 30), (34, 20, 60, 62))
    first, same, other = (
        torch.stack(list(model(image[None], [target], make_dice(model, 1, seed)).values())) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    with pytest.raises(RuntimeError, match="needs dice in training"):
        model(image[None], [target])


def test_mask_rcnn__in_bf16_boxes_stay_exact() -> None:
    torch.manual_seed(0)
    model = tiny_detector().train()
    image, target = scene((10, 12, 40, 44))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(image[None], [target], make_dice(model, 1))
        found = model.eval().detect(image[None])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {found[0].boxes.dtype, found[0].masks.dtype} == {torch.float32}


def test_detect__gives_boxes_labels_and_masks_of_each_image() -> None:
    torch.manual_seed(0)
    model = tiny_detector(score_threshold=0.0, num_detections=7).eval()
    images = torch.stack([scene((10, 12, 40, 44))[0], scene()[0]])
    for found in model.detect(images):
        assert [tuple(values.shape) for values in found] == [(7, 4), (7,), (7,), (7, 28, 28)]
        assert (found.scores.diff() <= 0).all()
        assert set(found.labels.tolist()) <= {0, 1, 2}
        assert ((found.masks >= 0) & (found.masks <= 1)).all()
        assert ((found.boxes >= 0) & (found.boxes <= 64)).all()
    alone = model.detect(images[:1])[0]
    torch.testing.assert_close(alone.boxes, model.detect(images)[0].boxes, rtol=1e-4, atol=1e-3)


def test_detect__nothing_is_sure_enough() -> None:
    torch.manual_seed(0)
    (found,) = tiny_detector(score_threshold=0.99).eval().detect(scene()[0][None])
    assert [tuple(values.shape) for values in found] == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_mask_rcnn__normalises_by_the_preprocess_of_the_weights() -> None:
    model, image = tiny_detector(), scene((1, 1, 9, 9))[0][None]
    assert torch.equal(model._normalised(image), normalise(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    half = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    other = MaskRCNN(model.backbone, 3, DetectorConfig(channels=16, head_dim=32), preprocess=half)
    torch.testing.assert_close(other._normalised(image), image / 127.5 - 1)


def conv(inputs: int, outputs: int, side: int, *, bias: bool) -> int:
    return inputs * outputs * side**2 + outputs * bias


def test_mask_rcnn__has_the_size_of_the_paper() -> None:
    """ViT-B with 80 classes, module by module as detectron2's config states them."""
    with torch.device("meta"):
        model = MaskRCNN(WindowedBackbone(ModelConfig(size="base"), image_size=1024), 80)
    size = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    assert size["backbone"] == 89_005_080
    head = 4 * (conv(256, 256, 3, bias=False) + 2 * 256)
    assert size["rpn"] == 2 * conv(256, 256, 3, bias=True) + conv(256, 3, 1, bias=True) + conv(256, 12, 1, bias=True)
    boxes = head + conv(256 * 49, 1024, 1, bias=True) + conv(1024, 81, 1, bias=True) + conv(1024, 4 * 81, 1, bias=True)
    assert size["roi_heads"] == boxes + head + conv(256, 256, 2, bias=True) + conv(256, 81, 1, bias=True)
    assert model.image_size == 1024
    assert model.num_dice == 24 + 2
    anchors = model.rpn.anchor_generator
    assert anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n) == (
        {"training": 2000, "testing": 1000},
        {"training": 1000, "testing": 1000},
    )
    heads = model.roi_heads
    assert heads.box_coder.weights == (10, 10, 5, 5)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (heads.fg_bg_sampler.count, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (model.rpn.fg_bg_sampler.count, model.rpn.nms_thresh) == (256, 0.7)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 8 + 4 + 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 0}, "channels: input should be greater than or equal to 1"),
        ({"pyramid": "sfp"}, "pyramid: input should be 'fpn' or 'simple'"),
        ({"anchors": 3}, "unknown key 'anchors'"),
    ],
)
def test_detector_config__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(DetectorConfig, values)
