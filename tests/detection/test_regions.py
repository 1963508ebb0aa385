import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops.poolers
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss, project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align

from mcbeit.detection.regions import RegionHeads, RegionPooler, class_and_box_loss, mask_loss, mask_targets, with_image

STRIDES = [4, 8, 16, 32, 64]
NUM_CLASSES, CHANNELS = 3, 8


def make_heads(**options: Any) -> RegionHeads:
    torch.manual_seed(0)
    sizes = {"head_dim": 16, "num_samples": 32, "score_threshold": 0.05, "num_detections": 20, **options}
    return RegionHeads(CHANNELS, STRIDES, 16, NUM_CLASSES, **sizes)


def make_maps(size: int = 128, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = [(batch, CHANNELS, size // stride, size // stride) for stride in STRIDES]
    return {f"p{i + 2}": torch.randn(*sides, generator=generator) for i, sides in enumerate(shape)}


def random_boxes(count: int, size: int = 128, seed: int = 0) -> Tensor:
    corners = size * torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1).clamp(max=size)


# reading regions


def test_region_pooler__means_of_a_ramp_are_the_middles_of_its_cells() -> None:
    """Maps that hold the x of the middle of each of their cells: RoIAlign with half-pixel centres reads x exactly."""
    pooler = RegionPooler(7, STRIDES, patch_size=16)
    maps = {
        f"p{i + 2}": ((torch.arange(1024 // s) + 0.5) * s).expand(1, 1, 1024 // s, -1) for i, s in enumerate(STRIDES)
    }
    boxes = torch.tensor([[100.3, 90.0, 130.9, 151.0], [64.0, 64.0, 288.0, 288.0], [200.0, 100.0, 900.0, 900.0]])
    for box, read in zip(boxes, pooler(maps, [boxes])[:, 0], strict=True):
        middles = box[0] + (torch.arange(7) + 0.5) * (box[2] - box[0]) / 7
        torch.testing.assert_close(read, middles.expand(7, 7), rtol=0, atol=1e-3)


@pytest.mark.parametrize("patch_size", [16, 8])
def test_region_pooler__the_level_follows_from_the_size(patch_size: int) -> None:
    """A region as large as the images of pretraining, 14 patches, comes from p4; of half the side, from p3."""
    strides = [patch_size * factor // 4 for factor in (1, 2, 4, 8, 16)]
    maps = {
        f"p{i + 2}": torch.full((1, 1, 1024 // stride, 1024 // stride), float(i + 2))
        for i, stride in enumerate(strides)
    }
    patches = [1.0, 6.9, 7.0, 13.9, 14.0, 27.9, 28.0, 60.0]
    boxes = torch.tensor([[0.0, 0.0, count * patch_size, count * patch_size] for count in patches])
    read = RegionPooler(7, strides, patch_size)(maps, [boxes])
    assert read[:, 0, 3, 3].tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    long = torch.tensor([[0.0, 0.0, 3.5 * patch_size, 56.0 * patch_size]])  # its area counts: 14 x 14 patches
    assert RegionPooler(7, strides, patch_size)(maps, [long])[0, 0, 3, 3] == 4


def test_region_pooler__is_roi_align_of_every_region_alone() -> None:
    maps, boxes = make_maps(512), [random_boxes(9, 512), random_boxes(5, 512, seed=1)]
    read, i = RegionPooler(7, STRIDES, 16)(maps, boxes), 0
    for image, found in enumerate(boxes):
        for box in found:
            side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            level = min(max(math.floor(4 + math.log2(side / 224)), 2), 5)
            features = maps[f"p{level}"][[image]]
            wanted = roi_align(features, [box[None]], 7, 1 / STRIDES[level - 2], sampling_ratio=-1, aligned=True)
            torch.testing.assert_close(read[i], wanted[0], rtol=1e-5, atol=1e-5)
            i += 1
    assert i == len(read) == 14


def test_region_pooler__no_region() -> None:
    assert RegionPooler(7, STRIDES, 16)(make_maps(), [torch.zeros(0, 4)] * 2).shape == (0, CHANNELS, 7, 7)


# mask targets


def make_masks(count: int, size: int = 96) -> Tensor:
    masks = torch.zeros(count, size, size, dtype=torch.uint8)
    for mask, box in zip(masks, random_boxes(count, size, seed=3).round().int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
        mask[box[1] : box[3], (box[0] + box[2]) // 2 : box[2] : 2] = 0
    return masks


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 96 * 96 * 3, 2**30])
def test_mask_targets__in_chunks_are_those_of_all_masks_at_once(chunk_bytes: int) -> None:
    masks, boxes = make_masks(8), random_boxes(40, 96, seed=5)
    instances = torch.randint(8, (40,), generator=torch.Generator().manual_seed(0))
    regions = torch.cat([instances.float()[:, None], boxes], dim=1)
    plain = roi_align(masks[:, None].float(), regions, 28, 1.0, sampling_ratio=0, aligned=True)[:, 0] >= 0.5
    found = mask_targets(masks, boxes, instances, 28, chunk_bytes=chunk_bytes)
    assert torch.equal(found, plain.float())
    assert 0.05 < found.mean() < 0.95


def test_mask_targets__by_hand() -> None:
    """The left half of a box of 28 x 28 pixels, read in 4 x 4 cells; then a box that is moved by half a cell."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[1, 10:38, 20:34] = 1
    boxes = torch.tensor([[20.0, 10.0, 48.0, 38.0], [16.5, 10.0, 44.5, 38.0]])
    found = mask_targets(masks, boxes, torch.tensor([1, 1]), 4)
    assert found[0].tolist() == [[1, 1, 0, 0]] * 4
    assert found[1].tolist() == [[1, 1, 1, 0]] * 4  # cells that are covered by a half count
    assert mask_targets(masks, boxes, torch.tensor([0, 0]), 4).sum() == 0


def test_mask_targets__differ_from_torchvisions_by_half_a_pixel_and_a_threshold() -> None:
    masks, boxes, instances = make_masks(4), random_boxes(30, 96, seed=5), torch.arange(30) % 4
    theirs = project_masks_on_boxes(masks, boxes, instances, 28)
    ours = mask_targets(masks, boxes, instances, 28)
    assert ((ours - theirs).abs() < 1).float().mean() > 0.98
    assert len(ours.unique()) == 2 < len(theirs.unique())


def test_mask_targets__without_instances() -> None:
    none = torch.zeros(0, 8, 8, dtype=torch.uint8)
    assert mask_targets(none, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


# losses


def test_class_and_box_loss__by_hand() -> None:
    """Two regions in the first image, the background in the second; L1 of the deltas of the right class."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    labels = [torch.tensor([2, 0]), torch.tensor([0])]
    deltas = torch.arange(36.0).view(3, 12)
    targets = (torch.tensor([[8.5, 7.0, 10.0, 11.0]] * 2), torch.zeros(1, 4))
    classes, boxes = class_and_box_loss(logits, deltas, labels, targets)
    log_sums = [math.log(sum(math.exp(logit) for logit in row)) for row in logits.tolist()]
    assert classes.item() == pytest.approx((log_sums[0] - 2 + log_sums[1] - 3 + log_sums[2] - 1) / 3)
    assert boxes.item() == pytest.approx((0.5 + 2 + 0 + 0) / 3)


def test_class_and_box_loss__of_large_errors_is_torchvisions_but_for_its_rounding() -> None:
    """Beyond 1/9 smooth L1 is L1 less half of that."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 4, generator=generator), [torch.tensor([1, 2, 3, 1, 2, 3])]
    deltas, targets = torch.randn(6, 16, generator=generator), [torch.full((6, 4), 9.0)]
    ours, theirs = class_and_box_loss(logits, deltas, labels, targets), fastrcnn_loss(logits, deltas, labels, targets)
    assert ours[0].item() == pytest.approx(theirs[0].item())
    assert ours[1].item() == pytest.approx(theirs[1].item() + 24 * (1 / 18) / 6)


def test_mask_loss__is_torchvisions_on_binary_targets() -> None:
    """Where boxes lie on pixels and cells are pixels, both have the same targets."""
    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(3, 4, 8, 8, generator=generator), make_masks(2)
    boxes, instances, labels = torch.tensor([[2.0, 3.0, 10.0, 11.0]] * 3), torch.tensor([0, 1, 0]), torch.tensor([1, 3])
    targets = mask_targets(masks, boxes, instances, 8)
    crop = masks[instances, 3:11, 2:10].float()
    assert torch.equal(targets, crop)
    found = mask_loss(logits, targets, labels[instances])
    by_hand = [
        math.log1p(math.exp(-z if t else z))
        for region, label, target in zip(logits, labels[instances], crop, strict=True)
        for z, t in zip(region[label].flatten().tolist(), target.flatten().tolist(), strict=True)
    ]
    assert found.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
    shifted = boxes + 0.5  # torchvision's RoIAlign lies half a pixel to the upper left
    assert found.item() == pytest.approx(
        maskrcnn_loss(logits, [shifted], [masks], [labels], [instances]).item(), rel=0.3
    )


def test_mask_loss__without_a_region_has_a_gradient_of_zero() -> None:
    logits = torch.zeros(0, 4, 8, 8, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 8, 8), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


# heads


def torchvision_heads() -> RoIHeads:
    def pooler(side: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], side, sampling_ratio=0)

    return RoIHeads(
        pooler(7), FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 4, [16], nn.BatchNorm2d),
        FastRCNNPredictor(16, NUM_CLASSES + 1), 0.5, 0.5, 32, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.5, 20,
        pooler(14), MaskRCNNHeads(CHANNELS, [CHANNELS] * 4, 1, nn.BatchNorm2d),
        MaskRCNNPredictor(CHANNELS, CHANNELS, NUM_CLASSES + 1),
    )  # fmt: skip


def test_region_heads__are_torchvisions_but_for_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = make_heads().eval(), torchvision_heads().eval()
    for layer in (ours.box_predictor.cls_score, ours.mask_predictor.mask_fcn_logits):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))  # or all scores are alike
    theirs.load_state_dict(ours.state_dict())
    boxes, sizes = [random_boxes(12), random_boxes(7, seed=1)], [(128, 128)] * 2
    before = theirs(make_maps(), boxes, sizes)[0]
    monkeypatch.setattr(torchvision.ops.poolers, "roi_align", functools.partial(roi_align, aligned=True))
    for found, wanted, unaligned in zip(
        ours(make_maps(), boxes, sizes)[0], theirs(make_maps(), boxes, sizes)[0], before, strict=True
    ):
        assert found.keys() == wanted.keys() == {"boxes", "scores", "labels", "masks"}
        assert len(found["boxes"]) == 20
        assert found["masks"].shape == (20, 1, 28, 28)
        for name, values in found.items():
            torch.testing.assert_close(values, wanted[name], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found["scores"], unaligned["scores"], atol=1e-3)


def test_region_heads__losses_are_those_of_the_chosen_regions() -> None:
    """All proposals count here; what each should be is found by loops."""
    heads = make_heads(num_samples=200).train()
    objects = torch.tensor([[10.0, 12.0, 60.0, 70.0], [64.0, 30.0, 120.0, 90.0]])
    target = {"boxes": objects, "labels": torch.tensor([2, 3]), "masks": make_masks(2, 128)}
    proposals = torch.cat([objects + 2, objects - 3, random_boxes(30)])
    maps = make_maps(batch=1)
    heads.fg_bg_sampler.throw(torch.tensor([0.5]))
    _, losses = heads(maps, [proposals], [(128, 128)], [target])
    everything = torch.cat([proposals, objects])  # objects are proposals too
    labels, deltas, positive = [], [], []
    for i, proposal in enumerate(everything):
        overlaps = [overlap(proposal, thing) for thing in objects]
        best = max(range(2), key=overlaps.__getitem__)
        labels.append([2, 3][best] if overlaps[best] >= 0.5 else 0)
        deltas.append(encode(proposal, objects[best]))
        positive += [(i, best)] if labels[-1] else []
    assert len(positive) >= 4
    logits, found = (x.detach() for x in heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, [everything]))))
    wanted = torch.tensor(labels)
    assert losses["class"].item() == pytest.approx(F.cross_entropy(logits, wanted).item(), rel=1e-4)
    box = sum(float((found[i, 4 * labels[i] : 4 * labels[i] + 4] - deltas[i]).abs().sum()) for i, _ in positive)
    assert losses["box"].item() == pytest.approx(box / len(everything), rel=1e-3)
    chosen = torch.tensor([i for i, _ in positive])
    outlines = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, [everything[chosen]])))
    targets = mask_targets(target["masks"], everything[chosen], torch.tensor([best for _, best in positive]), 28)
    assert losses["mask"].item() == pytest.approx(mask_loss(outlines, targets, wanted[chosen]).item(), rel=1e-3)


def overlap(first: Tensor, second: Tensor) -> float:
    sides = [max(0.0, float(min(first[i + 2], second[i + 2]) - max(first[i], second[i]))) for i in (0, 1)]
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def encode(proposal: Tensor, wanted: Tensor) -> Tensor:
    """Of the middle in tenths of the proposal's sides, of the sides in fifths of their logarithm."""
    sides, to = proposal[2:] - proposal[:2], wanted[2:] - wanted[:2]
    middle = (wanted[2:] + wanted[:2] - proposal[2:] - proposal[:2]) / 2
    return torch.cat([10 * middle / sides, 5 * (to / sides).log()])


def test_region_heads__start_as_detectron2s() -> None:
    heads = RegionHeads(64, STRIDES, 16, 80, head_dim=256, num_samples=8, score_threshold=0.05, num_detections=5)
    stds = {
        heads.box_predictor.cls_score: 0.01,
        heads.box_predictor.bbox_pred: 0.001,
        heads.mask_predictor.mask_fcn_logits: 0.001,
        heads.mask_predictor.conv5_mask: math.sqrt(2 / (64 * 4)),
        heads.mask_head[0][0]: math.sqrt(2 / (64 * 9)),
    }
    for layer, std in stds.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert layer.bias is None or (layer.bias == 0).all()
    linear = next(layer for layer in heads.box_head if isinstance(layer, nn.Linear))
    assert linear.weight.abs().max().item() == pytest.approx(math.sqrt(3 / (64 * 49)), rel=0.01)
    assert [type(layer).__name__ for layer in heads.mask_head[3]] == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_with_image__numbers_the_images() -> None:
    boxes = [torch.ones(1, 4), torch.zeros(0, 4), torch.full((2, 4), 2.0)]
    assert with_image(boxes).tolist() == [[0, 1, 1, 1, 1], [2, 2, 2, 2, 2], [2, 2, 2, 2, 2]]
