"""Detectors as the official code keeps them, and its parts written down from detectron2's definition of them."""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from backbones import scramble
from torch import Tensor

from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig

CLASSES, GRID, WINDOW, PATCH, CHANNELS = 3, 8, 4, 16, 16
NAMES = (  # ours -> theirs
    (r"^backbone\.blocks\.(\d+)\.attn\.relative_position_bias_table", r"^rel_pos_bias.\1.relative_position_bias_table"),
    (r"^backbone\.", "^"),
    (r"^pyramid\.ms_adaptor\.", "^ms_adaptor."),
    (r"^\^", "backbone.bottom_up."),
    (r"^pyramid\.fpn\.inner_blocks\.", "backbone.fpn_lateral"),
    (r"^pyramid\.fpn\.layer_blocks\.", "backbone.fpn_output"),
    (r"^roi_heads\.box_head\.5\.", "roi_heads.box_head.fc1."),
    (r"^roi_heads\.box_head\.(?=\d)", "roi_heads.box_head.conv"),
    (r"^roi_heads\.mask_head\.", "roi_heads.mask_head.mask_fcn"),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
    (r"^rpn\.head\.conv\.(\d)\.0\.", r"proposal_generator.rpn_head.conv.conv\1."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
)


def small_detector(*, depth: int = 8, window: int = WINDOW, num_classes: int = CLASSES, **options: Any) -> MaskRCNN:
    """Patches of 16 px in 128 px, windows of 4 x 4 of them; no number is zero or one. `options` are of the backbone."""
    config = ModelConfig(dim=32, depth=depth, num_heads=2, patch_size=PATCH, **options)
    backbone = WindowedBackbone(config, image_size=GRID * PATCH, window=window)
    heads = DetectorConfig(channels=CHANNELS, head_dim=24, score_threshold=0.05)
    model = MaskRCNN(backbone, num_classes, heads, preprocess=Preprocess())
    scramble(model)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    with torch.no_grad():
        for scores in (model.roi_heads.box_predictor.bbox_pred, model.rpn.head.bbox_pred):
            scores.weight.mul_(0.01)
    return model.eval()


def official_state_of(model: MaskRCNN, *, index: bool = True, pixels: bool = True) -> dict[str, Tensor]:
    """The same detector with the names and the orders of the official code."""
    state = {}
    for ours, value in model.state_dict().items():
        name = ours
        for pattern, theirs in NAMES:
            name = re.sub(pattern, theirs, name)
        number = re.match(r"(.*(?:fpn_lateral|fpn_output|box_head\.conv|mask_fcn))(\d)\.([01])\.(.*)", name)
        if number:
            first = 2 if "fpn" in name else 1
            norm = "norm." if number[3] == "1" else ""
            name = f"{number[1]}{int(number[2]) + first}.{norm}{number[4]}"
        state[name] = value.clone()
    scores, boxes, masks = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")
    for leaf in ("weight", "bias"):
        of_classes = state[f"roi_heads.{scores}.{leaf}"]
        state[f"roi_heads.{scores}.{leaf}"] = torch.cat([of_classes[1:], of_classes[:1]])
        state[f"roi_heads.{boxes}.{leaf}"] = state[f"roi_heads.{boxes}.{leaf}"][4:]
        state[f"roi_heads.{masks}.{leaf}"] = state[f"roi_heads.{masks}.{leaf}"][1:]
    if index:
        for name in [name for name in state if name.endswith("relative_position_bias_table")]:
            side = (math.isqrt(len(state[name])) + 1) // 2
            state[name.replace("bias_table", "index")] = index_of(side)
    if pixels:
        state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
        state["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return state


def checkpoint_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """What detectron2's trainer saves."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}
    trainer = {"iteration": 9, "optimizer": {"state": moments, "param_groups": [{"lr": 8e-5}]}, "hooks": {}}
    return {"model": state, "trainer": trainer, "iteration": 9}


def index_of(side: int) -> Tensor:
    """The row of the bias table for each query and key."""
    places = [(i // side, i % side) for i in range(side**2)]
    rows = [[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1 for c, d in places] for a, b in places]
    return torch.tensor(rows)


def anchors_of(level: int) -> Tensor:
    """Around (0, 0), of each aspect: 32 px on p2, twice as large on every further level."""
    boxes = []
    for aspect in (0.5, 1.0, 2.0):
        width = math.sqrt((32 * 2**level) ** 2 / aspect)
        boxes.append([-width / 2, -aspect * width / 2, width / 2, aspect * width / 2])
    return torch.tensor(boxes)


def conv(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """A convolution of stride 1 that keeps the size, and its batch norm if it has one."""
    weight = state[f"{name}.weight"]
    x = F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)
    if f"{name}.norm.weight" not in state:
        return x
    mean, variance, weight, bias = (
        state[f"{name}.norm.{leaf}"].view(-1, 1, 1) for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def pyramid(state: dict[str, Tensor], maps: list[Tensor]) -> list[Tensor]:
    """p2 to p6 of the adapted maps s0 to s3: from the coarsest to the finest, each added to the next."""
    found: list[Tensor] = []
    above = None
    for level in (5, 4, 3, 2):
        lateral = conv(state, f"backbone.fpn_lateral{level}", maps[level - 2])
        above = lateral if above is None else lateral + F.interpolate(above, scale_factor=2.0, mode="nearest")
        found.insert(0, conv(state, f"backbone.fpn_output{level}", above))
    return [*found, F.max_pool2d(found[-1], 1, 2)]


def proposals(state: dict[str, Tensor], levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Objectness and boxes of all anchors of one image: level by level, row by row, the anchors of a cell together."""
    head, all_scores, all_boxes = "proposal_generator.rpn_head", [], []
    for level, x in enumerate(levels):
        for i in range(2):
            x = conv(state, f"{head}.conv.conv{i}", x).relu()
        scores = conv(state, f"{head}.objectness_logits", x)[0].permute(1, 2, 0)  # row, column, anchor
        deltas = conv(state, f"{head}.anchor_deltas", x)[0].unflatten(0, (3, 4)).permute(2, 3, 0, 1)
        rows, columns = scores.shape[:2]
        stride = 4 * 2**level
        for row in range(rows):
            for column in range(columns):
                shift = torch.tensor([column, row, column, row]) * stride
                for anchor, box in enumerate(anchors_of(level) + shift):
                    all_scores.append(scores[row, column, anchor])
                    all_boxes.append(moved(box, deltas[row, column, anchor]))
    return torch.stack(all_scores), torch.stack(all_boxes)


def moved(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """Boxes after shifts of their centres in sides, and logarithms of factors of their sides."""
    dx, dy, dw, dh = (deltas[..., i] / weights[i] for i in range(4))
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x, y = boxes[..., 0] + width / 2 + dx * width, boxes[..., 1] + height / 2 + dy * height
    most = math.log(1000 / 16)
    width, height = width * dw.clamp(max=most).exp(), height * dh.clamp(max=most).exp()
    return torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)


def classes_and_boxes(state: dict[str, Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the classes with the background last, and box deltas of each class, of regions [n, c, 7, 7]."""
    for i in range(1, 5):
        regions = conv(state, f"roi_heads.box_head.conv{i}", regions).relu()
    x = linear(state, "roi_heads.box_head.fc1", regions.flatten(1)).relu()
    deltas = linear(state, "roi_heads.box_predictor.bbox_pred", x)
    return linear(state, "roi_heads.box_predictor.cls_score", x), deltas.unflatten(1, (-1, 4))


def masks(state: dict[str, Tensor], regions: Tensor) -> Tensor:
    """Logits of the masks of each class of regions [n, c, 14, 14]."""
    for i in range(1, 5):
        regions = conv(state, f"roi_heads.mask_head.mask_fcn{i}", regions).relu()
    name = "roi_heads.mask_head.deconv"
    x = F.conv_transpose2d(regions, state[f"{name}.weight"], state[f"{name}.bias"], stride=2).relu()
    return conv(state, "roi_heads.mask_head.predictor", x)


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
