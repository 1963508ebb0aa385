"""What detector a set of tensors belongs to, found from their names and shapes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mcbeit.config import validate
from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.windowed import NUM_STAGES, WindowedBackbone
from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig
from mcbeit.weight_architecture import BLOCK_TABLE, HEAD_DIM, hidden_ratio
from mcbeit.weights import DETECTOR_SCORES

WINDOWED, WHOLE = (f"backbone.{kind}_rel_pos_bias.relative_position_bias_table" for kind in ("windowed", "global"))


class DetectorShape(NamedTuple):
    """All that has to be known to build a detector, but for its colours."""

    model: ModelConfig
    image_size: int  # pixels
    window: int  # patches per side
    num_classes: int
    detector: DetectorConfig

    def hollow(self, preprocess: Preprocess | None) -> MaskRCNN:
        """It without numbers, on meta: drawing them, only to replace them, takes many seconds.

        Raises ConfigError if there is no such detector.
        """
        with torch.device("meta"):
            backbone = WindowedBackbone(self.model, image_size=self.image_size, window=self.window)
            return MaskRCNN(backbone, self.num_classes, self.detector, preprocess=preprocess)


def infer_detector(tensors: Mapping[str, Tensor], origin: str, name_in_file: Callable[[str], str]) -> DetectorShape:
    """The detector that tensors, by our names, belong to; what they do not tell is as the paper has it.

    Raises WeightsError, with names as the file has them, if a tensor that tells the shape is missing or has one that no
    detector has, ConfigError if they do not go together.
    """
    found = _Shapes(tensors, origin, name_in_file)
    dim, _, patch, _ = found.of("backbone.patch_embed.proj.weight", 4)
    grid = found.side("backbone.pos_embed", found.of("backbone.pos_embed", 3)[1])
    hidden, _ = found.of("backbone.blocks.0.mlp.fc1.weight", 2)
    scores, head_dim = found.of(DETECTOR_SCORES, 2)
    depth = sum(f"backbone.blocks.{i}.mlp.fc1.weight" in tensors for i in range(len(tensors)))
    per_block = f"backbone.blocks.0.{BLOCK_TABLE}"
    table = next((name for name in (WINDOWED, WHOLE, per_block) if name in tensors), None)
    values = {
        "dim": dim,
        "depth": depth,
        "num_heads": max(1, dim // HEAD_DIM) if table is None else found.of(table, 2)[1],
        "mlp_ratio": hidden_ratio(hidden, dim),
        "patch_size": patch,
        "position": "learned" if table is None else "relative+learned",
        "bias_tables": "per-block" if table == per_block else "shared",
        "layer_scale": 0.1 if "backbone.blocks.0.gamma_1" in tensors else 0.0,
    }
    detector = {
        "pyramid": "simple" if any(name.startswith("pyramid.levels.") for name in tensors) else "fpn",
        "channels": found.of("rpn.head.cls_logits.weight", 4)[1],
        "head_dim": head_dim,
    }
    return DetectorShape(
        model=validate(ModelConfig, values, origin=f"the backbone of '{origin}'"),
        image_size=grid * patch,
        window=grid if depth <= NUM_STAGES else found.window(WINDOWED if table != per_block else per_block),
        num_classes=max(1, scores - 1),
        detector=validate(DetectorConfig, detector, origin=f"the heads of '{origin}'"),
    )


@dataclass(frozen=True)
class _Shapes:
    """The shapes of tensors by our names, and how the file calls them."""

    tensors: Mapping[str, Tensor]
    origin: str
    name_in_file: Callable[[str], str]

    def of(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor. Raises WeightsError if there is none, or if it has other dimensions."""
        told = f"'{self.name_in_file(name)}'"
        if name not in self.tensors:
            raise WeightsError(f"'{self.origin}' is no detector with a BEiT as its backbone: it has no {told}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != ndim or 0 in shape:
            raise WeightsError(f"{told} of '{self.origin}' is {list(shape)}; {ndim} dimensions are wanted")
        return shape

    def side(self, name: str, count: int) -> int:
        """The side of a square of so many. Raises WeightsError if there is none."""
        side = math.isqrt(count)
        if side**2 != count:
            raise WeightsError(
                f"'{self.name_in_file(name)}' of '{self.origin}' is for {count} places, which are no square; only "
                "square images and windows can be read"
            )
        return side

    def window(self, table: str) -> int:
        """Patches per side of the windows that a bias table is for. Raises WeightsError without one."""
        if table not in self.tensors:
            raise WeightsError(
                f"'{self.origin}' does not tell in which windows its blocks attend: it has no "
                f"'{self.name_in_file(table)}'"
            )
        return (self.side(table, self.of(table, 2)[0]) + 1) // 2
