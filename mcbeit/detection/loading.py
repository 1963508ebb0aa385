"""Trained detectors from files: runs of ours, and checkpoints of the official code in the layout of detectron2.

Every key is accounted for; nothing is passed over in silence.

    loaded = load_detector("model_final.pth")    # or a run folder
    print(loaded.account.summary())
    (found,) = loaded.model.detect(squares)      # see `Detections.in_image`
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mcbeit.config import load
from mcbeit.detection.detector_shape import WINDOWED, DetectorShape, infer_detector
from mcbeit.detection.mask_rcnn import MaskRCNN
from mcbeit.detection.official_layout import check_buffers, is_official, official_name, to_ours
from mcbeit.detection.setup import DetectionConfig
from mcbeit.detection.windowed import WindowAttention
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.weight_account import Account, some
from mcbeit.weight_files import TIMM, StoredWeights, open_weights, run_of
from mcbeit.weight_fitting import casting
from mcbeit.weights import DETECTOR_SCORES, take_tensors

BATCHES = "num_batches_tracked"  # of batch norms: not needed to use them, and old files have none
OWN_PARTS = ("pyramid.", "rpn.", "roi_heads.")  # beside the backbone


class LoadedDetector(NamedTuple):
    """A trained detector in evaluation mode, and what is known of it."""

    model: MaskRCNN
    shape: DetectorShape
    image_size: int  # pixels, of the squares that it looks at
    preprocess: Preprocess | None  # None: the file does not tell, so ImageNet's constants are assumed
    account: Account


def holds_detector(source: str | Path) -> bool:
    """Whether weights are those of a detector. Raises WeightsError if they cannot be read."""
    return not str(source).startswith(TIMM) and DETECTOR_SCORES in open_weights(source).names()


def load_detector(source: str | Path) -> LoadedDetector:
    """Read a detector. Raises WeightsError that names every key that is missing, unknown or of another size."""
    stored = open_weights(source)
    names = stored.names()
    if DETECTOR_SCORES not in names:
        raise WeightsError(f"'{source}' is no detector: it has no '{DETECTOR_SCORES}'; it holds {some(stored.tensors)}")
    account = Account(stored.origin, (*stored.tensors, *stored.beside), owner="a Mask R-CNN on BEiT")
    for key, why in stored.beside.items():
        account.note(key, "ignored", why)
    tensors, keys = take_tensors(stored, names, account)
    preprocess = stored.known.preprocess
    if theirs := is_official(names):
        tensors, keys, preprocess = to_ours(tensors, keys, account)
    else:
        tensors = {_own_name(name): value for name, value in tensors.items()}
        keys = {_own_name(name): key for name, key in keys.items()}
    name_in_file: Callable[[str], str] = official_name if theirs else str
    try:
        shape = _shape(stored, tensors, name_in_file)
        preprocess = preprocess and preprocess.model_copy(update={"image_size": shape.image_size})
        model = shape.hollow(preprocess)
    except ConfigError as error:
        raise WeightsError(f"'{stored.origin}' is no detector that can be built: {error}") from error
    if theirs:
        check_buffers(stored.tensors, model, account)
    _fill(model, tensors, keys, account, name_in_file)
    return LoadedDetector(model.eval(), shape, shape.image_size, preprocess, account)


def _own_name(name: str) -> str:
    return name if name.startswith(OWN_PARTS) else f"backbone.{name}"


def _shape(stored: StoredWeights, tensors: dict[str, Tensor], name_in_file: Callable[[str], str]) -> DetectorShape:
    """By the config of the run, if it is one of ours, or else by the tensors. Raises ConfigError or WeightsError."""
    run = None if stored.path is None else run_of(stored.path.parent)
    if run is None:
        return infer_detector(tensors, stored.origin, name_in_file)
    config = load(DetectionConfig, run / "config.yaml")
    num_classes = max(1, len(tensors[DETECTOR_SCORES]) - 1)
    return DetectorShape(config.model, config.preprocess.image_size, config.window, num_classes, config.detector)


def _fill(
    model: MaskRCNN,
    tensors: dict[str, Tensor],
    keys: dict[str, str],
    account: Account,
    name_in_file: Callable[[str], str],
) -> None:
    """Give a hollow model the tensors, in float32. Raises WeightsError if they are not those that it has."""
    wanted = model.state_dict()
    if WINDOWED in tensors and WINDOWED not in wanted:
        account.note(keys.pop(WINDOWED), "ignored", "bias table of windows, where every block attends to all patches")
        del tensors[WINDOWED]
    missing = [name_in_file(name) for name in wanted if name not in tensors and not name.endswith(BATCHES)]
    surplus = [keys[name] for name in tensors if name not in wanted]
    wrong = [
        f"{keys[name]} is {list(value.shape)}, not {list(wanted[name].shape)}"
        for name, value in tensors.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    told = (("lacks", missing), ("has too much:", surplus), ("has other sizes:", wrong))
    if complaints := [f"it {verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{account.origin}' does not fit the detector: {'; '.join(complaints)}")
    if broken := [keys[name] for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise WeightsError(f"'{account.origin}' holds numbers that are not finite (NaN or infinite): {some(broken)}")
    for name in tensors:
        account.note(keys[name], *(("loaded", "") if name.endswith(BATCHES) else casting(tensors[name])))
    account.check_complete()
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.reset_padding()
    counters = {name: torch.zeros(()) for name in wanted if name.endswith(BATCHES)}
    model.load_state_dict({**counters, **tensors})
