"""Detectors of the official code: which of detectron2's names are which of ours, and what has another order there.

In detectron2 the background is the last class, and has neither box nor mask; here, as in torchvision, it is the first,
and has rows for both, which nothing reads. Anchors, box deltas, the cells of a region before the fully connected layer
and the levels of the pyramid come in the same order in both.
"""

import re
from collections.abc import Collection, Mapping

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor

from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.weight_account import Account, some
from mcbeit.weights import INDEX

RPN = "proposal_generator.rpn_head."
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
CLASSES = "roi_heads.box_predictor.cls_score"
BOXES, MASKS = "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_head.predictor"
MEAN, STD = "pixel_mean", "pixel_std"
PATCH_SIZE = 16  # the strides of its maps are written down for it, whatever the patches are
TOLERANCE = 1e-3  # pixels, of an anchor
CONVOLUTIONS = {  # those with a batch norm
    **{f"fpn_lateral{i + 2}.": f"pyramid.fpn.inner_blocks.{i}." for i in range(4)},
    **{f"fpn_output{i + 2}.": f"pyramid.fpn.layer_blocks.{i}." for i in range(4)},
    **{f"roi_heads.box_head.conv{i + 1}.": f"roi_heads.box_head.{i}." for i in range(4)},
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"roi_heads.mask_head.{i}." for i in range(4)},
}
PARTS = {  # the beginnings of their names, without `backbone.`, and of ours; the first one that fits counts
    **{f"{theirs}norm.": f"{ours}1." for theirs, ours in CONVOLUTIONS.items()},
    **{theirs: f"{ours}0." for theirs, ours in CONVOLUTIONS.items()},
    **{f"{RPN}conv.conv{i}.": f"rpn.head.conv.{i}.0." for i in range(2)},
    f"{RPN}objectness_logits.": "rpn.head.cls_logits.",
    f"{RPN}anchor_deltas.": "rpn.head.bbox_pred.",
    "roi_heads.box_head.fc1.": "roi_heads.box_head.5.",
    "roi_heads.box_predictor.": "roi_heads.box_predictor.",
    "roi_heads.mask_head.deconv.": "roi_heads.mask_predictor.conv5_mask.",
    f"{MASKS}.": "roi_heads.mask_predictor.mask_fcn_logits.",
    "bottom_up.ms_adaptor.": "pyramid.ms_adaptor.",
    "bottom_up.": "backbone.",
}
TABLES = r"(backbone\.)rel_pos_bias\.(\d+)\.", r"\1blocks.\2.attn."
TABLES_BACK = r"(backbone\.)blocks\.(\d+)\.attn\.(relative_position_bias_table)", r"\1rel_pos_bias.\2.\3"


def is_official(names: Collection[str]) -> bool:
    """Whether the names are detectron2's."""
    return any(name.startswith(RPN) for name in names)


def our_name(name: str) -> str | None:
    """Ours for one of theirs, which is without `backbone.`; None for what is no part of such a detector."""
    part = next((part for part in PARTS if name.startswith(part)), None)
    return None if part is None else re.sub(*TABLES, PARTS[part] + name.removeprefix(part))


def official_name(name: str) -> str:
    """Theirs for one of ours."""
    name = re.sub(*TABLES_BACK, name)
    theirs, ours = next(pair for pair in PARTS.items() if name.startswith(pair[1]))
    is_inside = theirs.startswith(("bottom_up", "fpn"))
    return ("backbone." if is_inside else "") + theirs + name.removeprefix(ours)


def to_ours(
    tensors: Mapping[str, Tensor], keys: Mapping[str, str], account: Account
) -> tuple[dict[str, Tensor], dict[str, str], Preprocess | None]:
    """The tensors by our names and in our order, the keys of the file for these names, and the preprocessing.

    `account` learns of what is converted. Raises WeightsError for keys that no such detector has, and for detectors
    whose classes share boxes or masks.
    """
    _check_rows(tensors, account.origin)
    names = {name: our_name(name) for name in tensors if name not in (MEAN, STD) and not name.startswith(ANCHORS)}
    account.refuse(keys[name] for name, ours in names.items() if ours is None)
    found, places = dict[str, Tensor](), dict[str, str]()
    for name, ours in names.items():
        assert ours is not None
        found[ours], rule = _reordered(name, tensors[name])
        places[ours] = keys[name]
        if rule:
            account.note(keys[name], "converted", rule)
    return found, places, _preprocess(tensors, keys, account)


def _reordered(name: str, value: Tensor) -> tuple[Tensor, str]:
    stem = name.rpartition(".")[0]
    if stem == CLASSES:
        return value.roll(1, dims=0), "the background first, which there is the last class"
    if stem == BOXES:
        return torch.cat([value.new_zeros(4, *value.shape[1:]), value]), "a box of the background before it: zeros"
    if stem == MASKS:
        return torch.cat([value.new_zeros(1, *value.shape[1:]), value]), "a mask of the background before it: zeros"
    return value, ""


def _check_rows(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises WeightsError unless each class has a box and a mask of its own."""
    num_classes = len(tensors[f"{CLASSES}.weight"]) - 1
    for stem, rows, what in ((BOXES, 4 * num_classes, "boxes"), (MASKS, num_classes, "masks")):
        for name in (f"{stem}.weight", f"{stem}.bias"):
            if name in tensors and len(tensors[name]) != rows:
                raise WeightsError(
                    f"'{origin}' has {num_classes} classes by '{CLASSES}.weight', but {len(tensors[name])} rows in "
                    f"'{name}', not {rows}: detectors whose classes share {what} cannot be read"
                )


def _preprocess(tensors: Mapping[str, Tensor], keys: Mapping[str, str], account: Account) -> Preprocess | None:
    """What `pixel_mean` and `pixel_std` say, which newer versions do not keep. Raises WeightsError if it is BGR."""
    if MEAN not in tensors or STD not in tensors:
        return None
    for name in (MEAN, STD):
        account.note(keys[name], "converted", "of values up to 255 to values up to 1, in the preprocessing")
    mean, std = (tuple(round(value / 255, 6) for value in tensors[name].flatten().tolist()) for name in (MEAN, STD))
    if mean == Preprocess().mean[::-1]:
        raise WeightsError(
            f"'{account.origin}' reads colours as blue, green, red by its '{keys[MEAN]}'; only red, green, blue is read"
        )
    return Preprocess(mean=mean, std=std)


def check_buffers(tensors: Mapping[str, Tensor], model: MaskRCNN, account: Account) -> None:
    """Account for what is computed anew: anchors and the order of bias tables; `tensors` are by the file's keys.

    Raises WeightsError if it is not computed to the same, or if the patches are not those of the official code.
    """
    if model.backbone.patch_size != PATCH_SIZE:
        raise WeightsError(
            f"'{account.origin}' has patches of {model.backbone.patch_size} pixels; the official code finds objects "
            f"at the right places with patches of {PATCH_SIZE} only"
        )
    other = [key for key, value in tensors.items() if INDEX in key and not _is_our_order(value, model.backbone)]
    anchors = {f"{ANCHORS}{level}": boxes for level, boxes in enumerate(_anchors(model))}
    for key in (key for key in tensors if ANCHORS in key):
        account.note(key, "ignored", "anchors, computed anew")
        wanted, found = anchors.get(key[key.index(ANCHORS) :]), tensors[key].float()
        if wanted is None or found.shape != wanted.shape or not torch.allclose(found, wanted, atol=TOLERANCE):
            other.append(key)
    if other:
        raise WeightsError(
            f"'{account.origin}' has other anchors, or another order of positions, than there are here: {some(other)}"
        )


def _is_our_order(value: Tensor, backbone: WindowedBackbone) -> bool:
    """Whether an index buffer is that of the rule, for the patches of a window or of the grid."""
    return any(
        value.shape == (rows * columns,) * 2
        and torch.equal(value.long(), gen_relative_position_index((rows, columns))[1:, 1:])
        for rows, columns in {backbone.window, backbone.grid}
    )


def _anchors(model: MaskRCNN) -> list[Tensor]:
    generator = model.rpn.anchor_generator
    pairs = zip(generator.sizes, generator.aspect_ratios, strict=True)
    return [generator.generate_anchors(sizes, aspects) for sizes, aspects in pairs]
