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

from mcbeit.config import read_values, validate
from mcbeit.detection.detector_shape import WINDOWED, DetectorShape, infer_detector
from mcbeit.detection.mask_rcnn import DetectorConfig, MaskRCNN
from mcbeit.detection.official_layout import check_buffers, is_official, official_name, to_ours
from mcbeit.detection.windowed import WINDOW, WindowAttention
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
    run: Path | None  # that it is of; None: it is no run of ours
    account: Account
    keys: dict[str, str]  # parameter or buffer -> key of the file


def holds_detector(source: str | Path) -> bool:
    """Whether weights are those of a detector. Raises WeightsError if they cannot be read."""
    return not str(source).startswith(TIMM) and is_detector(open_weights(source))


def is_detector(stored: StoredWeights) -> bool:
    """`holds_detector` of tensors that have been read."""
    return DETECTOR_SCORES in stored.names()


def load_detector(source: str | Path) -> LoadedDetector:
    """Read a detector. Raises WeightsError that names every key that is missing, unknown or of another size."""
    return detector_of(open_weights(source))


def detector_of(stored: StoredWeights) -> LoadedDetector:
    """`load_detector` of tensors that have been read."""
    names = stored.names()
    if DETECTOR_SCORES not in names:
        raise WeightsError(
            f"'{stored.origin}' is no detector: it has no '{DETECTOR_SCORES}'; it holds {some(stored.tensors)}"
        )
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
    run = None if stored.path is None else run_of(stored.path.parent)
    try:
        shape = infer_detector(tensors, stored.origin, name_in_file) if run is None else _shape_of(run, stored, tensors)
        preprocess = preprocess and preprocess.model_copy(update={"image_size": shape.image_size})
        model = shape.hollow(preprocess)
    except ConfigError as error:
        raise WeightsError(f"'{stored.origin}' is no detector that can be built: {error}") from error
    if theirs:
        check_buffers(stored.tensors, model, account)
    _fill(model, tensors, keys, account, name_in_file)
    return LoadedDetector(model.eval(), shape, shape.image_size, preprocess, run, account, keys)


def _own_name(name: str) -> str:
    return name if name.startswith(OWN_PARTS) else f"backbone.{name}"


def _shape_of(run: Path, stored: StoredWeights, tensors: dict[str, Tensor]) -> DetectorShape:
    """By the config of the run, but for the number of classes. Raises ConfigError."""
    values, known = read_values(run / "config.yaml"), stored.known
    assert known.model is not None  # of every run
    assert known.image_size is not None
    detector = validate(DetectorConfig, values.get("detector", {}), origin=str(run))
    num_classes = max(1, len(tensors[DETECTOR_SCORES]) - 1)
    return DetectorShape(known.model, known.image_size, values.get("window", WINDOW), num_classes, detector)


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
