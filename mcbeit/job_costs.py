"""What each kind of job takes: parameters, FLOPs per image and the images there are, before anything is trained."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from mcbeit.cost import tokenizer_flops
from mcbeit.detection.coco import open_coco_splits
from mcbeit.detection.memory import training_memory
from mcbeit.detection.setup import DetectionConfig, detector_flops, make_detector
from mcbeit.dvae import DiscreteVAE
from mcbeit.finetune import open_images
from mcbeit.finetune_setup import FinetuneConfig, make_classifier
from mcbeit.finetune_setup import estimate_cost as estimate_classifier_cost
from mcbeit.kmeans import KMeansTokenizer
from mcbeit.kmeans_training import KMeansRunConfig
from mcbeit.masked import MaskedImageModel
from mcbeit.pretrain_setup import PretrainConfig, estimate_cost, first_run
from mcbeit.segmentation.memory import step_memory
from mcbeit.segmentation.scenes import open_scenes
from mcbeit.segmentation.setup import SegmentationConfig, make_segmenter, segmenter_flops
from mcbeit.tokenizer_plan import TokenizerRun, planned_tokenizer, with_path
from mcbeit.vit import VisionTransformer


class Images(NamedTuple):
    """Images to learn from."""

    number: int
    num_classes: int  # 0: it does not matter
    origin: str


class JobCost(NamedTuple):
    """By part."""

    parameters: dict[str, int]
    flops: dict[str, float]  # per image
    notes: tuple[str, ...] = ()


GB = 1e9
# what a preset whose images are not there is costed for
IMAGENET = Images(1_281_167, 1000, "ImageNet-1K")
ADE20K = Images(20_210, 150, "ADE20K")
COCO = Images(117_266, 80, "COCO 2017 that show an object")


def plain_images(config: Any) -> Images:
    """Of a job that needs no labels. Raises DataError."""
    return Images(len(config.data.open()), 0, f"{config.data.source}")


def finetune_images(config: FinetuneConfig) -> Images:
    """Of finetuning. Raises DataError."""
    images = open_images(config)
    return Images(len(images.train), images.num_classes, f"{config.data.source}")


def segmentation_images(config: SegmentationConfig) -> Images:
    """Of segmentation. Raises DataError."""
    source = open_scenes(str(config.data.source)).train
    return Images(len(source), source.num_classes, f"{config.data.source}")


def detection_images(config: DetectionConfig) -> Images:
    """Of detection. Raises DataError."""
    source = open_coco_splits(str(config.data.source)).train
    return Images(len(source), len(source.classes), f"{config.data.source}")


def finetune_cost(config: FinetuneConfig, num_classes: int) -> JobCost:
    """Of finetuning."""
    with torch.device("meta"):
        model = make_classifier(config, num_classes)
    cost = estimate_classifier_cost(config, num_classes)
    parameters = {"backbone": _count(model.backbone), "head": _count(model.head)}
    return JobCost(parameters, {name: value for name, value in cost._asdict().items() if value})


def segmentation_cost(config: SegmentationConfig, num_classes: int) -> JobCost:
    """Of segmentation."""
    with torch.device("meta"):
        model = make_segmenter(config, num_classes)
    parts = {"backbone": model.backbone, "pyramid": model.pyramid}
    heads = {"UperNet head": model.decode_head, "auxiliary head": model.auxiliary_head}
    parameters = {name: _count(part) for name, part in (parts | heads).items()}
    flops = {"forward and backward": segmenter_flops(config, num_classes)}
    model.backbone.set_grad_checkpointing(config.compute.gradient_checkpointing)
    memory = step_memory(model, config.preprocess.image_size)
    note = (
        f"memory of a training step: {memory.fixed / GB:.1f} GB, and {memory.per_image / GB:.2f} GB per image in "
        "float32 (calculated; in bf16 about two thirds)"
    )
    return JobCost(parameters, flops, (note,))


def detection_cost(config: DetectionConfig, num_classes: int) -> JobCost:
    """Of detection."""
    with torch.device("meta"):
        model = make_detector(config, num_classes)
    parameters = {"backbone": _count(model.backbone), "pyramid": _count(model.pyramid)}
    parameters |= {"proposals": _count(model.rpn), "heads": _count(model.roi_heads)}
    flops = {"forward and backward": detector_flops(config)}
    model.backbone.grad_checkpointing = config.compute.gradient_checkpointing
    full, half = (training_memory(model, batch_size=1, number_bytes=size) for size in (4, 2))
    note = (
        f"memory of a training step of one image: {full.total(1) / GB:.1f} GB in float32, {half.total(1) / GB:.1f} GB "
        f"in bf16; of each further one {full.per_image / GB:.2f} and {half.per_image / GB:.2f} GB (calculated)"
    )
    return JobCost(parameters, flops, (note,))


def pretrain_cost(config: PretrainConfig, _: int) -> JobCost:
    """Of pretraining."""
    with torch.device("meta"):
        tokenizer = planned_tokenizer(with_path(config.tokenizer, Path(config.run)), first_run(config))
        backbone = VisionTransformer(
            config.model, image_size=config.preprocess.image_size, channels=config.data.channels
        )
        model = MaskedImageModel(backbone, tokenizer.vocab_size, config.objective)
        cost = estimate_cost(config, tokenizer)
    parameters = {"backbone": _count(backbone), "head": _count(model.lm_head), "tokenizer (frozen)": _count(tokenizer)}
    return JobCost(parameters, {name: value for name, value in cost._asdict().items() if value})


def tokenizer_cost(config: TokenizerRun, _: int) -> JobCost:
    """Of a tokenizer."""
    if isinstance(config, KMeansRunConfig):
        with torch.device("meta"):
            fitted = KMeansTokenizer(config.model).eval()
            flops = {"features": tokenizer_flops(fitted, config.image_size)}
            return JobCost({"network (frozen)": _count(fitted)}, flops)
    with torch.device("meta"):
        tokenizer = DiscreteVAE(config.model)
        encoder = tokenizer_flops(tokenizer, config.image_size)
    # the decoder mirrors the encoder; a backward pass is twice its forward
    return JobCost({"tokenizer": _count(tokenizer)}, {"encoder and decoder": 6 * encoder})


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
