from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.memory import _backbone_bytes, _pyramid_bytes, count_parameters, training_memory
from mcbeit.detection.windowed import WindowedBackbone
from mcbeit.vit import ModelConfig


def make_model(*, pyramid: str = "fpn", **options: Any) -> MaskRCNN:
    torch.manual_seed(0)
    config = ModelConfig(**{"dim": 96, "depth": 8, "num_heads": 3, "patch_size": 16, "drop_path": 0.0, **options})
    backbone = WindowedBackbone(config, image_size=192, window=4)
    return MaskRCNN(backbone, 80, DetectorConfig(pyramid=pyramid, channels=32, head_dim=64, region_samples=64)).train()


def kept_bytes(run: Callable[[], Any], model: nn.Module, *, besides: Iterable[int] = ()) -> int:
    """The memory that a forward pass keeps for its backward pass, without parameters and their copies.

    Matrices of `besides` rows and columns do not count: the CPU's attention keeps them.
    """
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    shapes = {tuple(value.shape) for value in model.parameters()}
    shapes |= {tuple(value.shape[::-1]) for value in model.parameters() if value.ndim == 2}
    kept: dict[int, Tensor] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage().data_ptr()
        is_matrix = value.ndim > 1 and value.shape[-1] == value.shape[-2] and value.shape[-1] in besides
        is_copy = value.dtype != torch.float32 and tuple(value.shape) in shapes
        if storage not in own and not is_copy and not is_matrix:
            kept[storage] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        run()
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def pixels(model: MaskRCNN) -> Tensor:
    return torch.randn(1, 3, model.image_size, model.image_size)


@pytest.mark.parametrize("options", [{}, {"dim": 192, "depth": 4}, {"mlp_ratio": 2.0}])
def test_backbone_bytes__are_what_torch_keeps(options: dict[str, Any]) -> None:
    model = make_model(**options)
    measured = kept_bytes(lambda: model.backbone(pixels(model)), model.backbone, besides=(144, 16))
    # where a block sees everything, the attention of CPUs keeps a number more per patch and channel
    assert measured == pytest.approx(_backbone_bytes(model.backbone, 4), rel=0.06)


@pytest.mark.parametrize("pyramid", ["fpn", "simple"])
def test_pyramid_bytes__are_what_torch_keeps(pyramid: str) -> None:
    model = make_model(pyramid=pyramid)
    maps = [torch.randn(1, 96, 12, 12, requires_grad=True) for _ in range(4)]
    measured = kept_bytes(lambda: model.pyramid(maps), model.pyramid)
    assert measured == pytest.approx(_pyramid_bytes(model, 4), rel=0.04)


@pytest.mark.parametrize("size", [4, 2])
def test_training_memory__heads_keep_what_is_counted(size: int) -> None:
    model = make_model()
    maps = [torch.randn(1, 32, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(5)]
    boxes = torch.randn(64, 32, 7, 7, requires_grad=True)
    masks = torch.randn(16, 32, 14, 14, requires_grad=True)
    heads = model.roi_heads
    with torch.autocast("cpu", torch.bfloat16, enabled=size == 2):
        proposals = kept_bytes(lambda: model.rpn.head(maps), model.rpn)
        of_boxes = kept_bytes(lambda: heads.box_predictor(heads.box_head(boxes)), heads)
        of_masks = kept_bytes(lambda: heads.mask_predictor(heads.mask_head(masks)), heads)
    cells = 64**2 * (1 + 1 / 4 + 1 / 16 + 1 / 64 + 1 / 256)
    assert proposals == pytest.approx(cells * 3 * 32 * size, rel=0.02)
    assert of_boxes == pytest.approx(boxes.numel() * 9 * size, rel=0.02)
    assert of_masks == pytest.approx(masks.numel() * 13 * size, rel=0.02)


def of_the_paper(*, bias_tables: str = "shared", grad_checkpointing: bool = False) -> MaskRCNN:
    with torch.device("meta"):
        model = MaskRCNN(WindowedBackbone(ModelConfig(bias_tables=bias_tables), image_size=1024), 80)
    model.backbone.grad_checkpointing = grad_checkpointing
    return model


def test_training_memory__of_the_papers_model() -> None:
    found = training_memory(of_the_paper(), batch_size=2, number_bytes=2)
    parameters = sum(count_parameters(of_the_paper()).values())
    assert count_parameters(of_the_paper())["backbone"] == 89_005_080
    assert found.fixed == parameters * (16 + 2)
    assert found.shared == 12 * 4096**2 * 2
    assert found.working == 12 * 4096**2 * (3 * 2 + 4)
    assert 2.2e9 < found.per_image < 3.0e9
    assert found.total(2) == found.fixed + found.shared + found.working + 2 * found.per_image
    assert 8e9 < found.total(2) < 12e9  # two images per GPU, 32 GPUs: the paper's batch


def test_training_memory__what_makes_it_smaller_and_larger() -> None:
    usual = training_memory(of_the_paper(), batch_size=2, number_bytes=2)
    full = training_memory(of_the_paper(), batch_size=2, number_bytes=4)
    saving = training_memory(of_the_paper(grad_checkpointing=True), batch_size=2, number_bytes=2)
    own = training_memory(of_the_paper(bias_tables="per-block"), batch_size=2, number_bytes=2)
    assert 1.7 < full.per_image / usual.per_image < 2.1
    assert saving.per_image < 0.6 * usual.per_image
    assert own.shared == 4 * usual.shared
