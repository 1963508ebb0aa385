"""Backbones from anywhere, ready to be embedded with: weights of a BEiT, or any model of timm."""

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from mcbeit.bodies import BeitBody, Body, TimmBody
from mcbeit.encoder import TIMM, EncoderConfig
from mcbeit.errors import EncoderError, WeightsError
from mcbeit.fingerprint import UNUSED
from mcbeit.image_files import COLOURS
from mcbeit.network_weights import (
    PACKAGED,
    PACKAGED_MEAN,
    PACKAGED_MODULE,
    PACKAGED_NETWORK,
    PACKAGED_STD,
    read_network,
)
from mcbeit.preprocess import Preprocess
from mcbeit.weight_files import timm_preprocess
from mcbeit.weight_fitting import load_backbone
from mcbeit.weight_layouts import TimmCall, timm_call

RANDOM = "random"


@dataclass(frozen=True)
class LoadedBody:
    """A backbone in evaluation mode, what its images are, and what a person should hear of it."""

    body: Body
    preprocess: Preprocess
    name: str
    timm: TimmCall  # how timm builds the model that the tensors fit strictly
    notes: tuple[str, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by timm's names."""
        state: dict[str, Tensor] = self.body.model.state_dict()
        return {name: value for name, value in state.items() if name not in UNUSED}


def load_body(source: str | Path, config: EncoderConfig) -> LoadedBody:
    """Open a run folder, a .safetensors file, a checkpoint of the official code or timm:NAME.

    Raises WeightsError or EncoderError.
    """
    name = str(source).removeprefix(TIMM)
    is_timm = str(source).startswith(TIMM)
    if is_timm and not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise EncoderError(f"timm has no model '{name}'" + (f"; did you mean timm:{close[0]}?" if close else ""))
    if config.weights is not None and not is_timm:
        raise EncoderError(f"weights={config.weights} is for timm:NAME; '{source}' has its own weights")
    if is_timm and (config.weights is not None or not _is_beit(name)):
        return _load_timm(name, config)
    return _load_beit(str(source), config)


def _load_beit(source: str, config: EncoderConfig) -> LoadedBody:
    loaded = load_backbone(source, image_size=config.image_size, num_heads=config.num_heads)
    notes = [f"weights: {loaded.account.summary()}"]
    known = loaded.preprocess
    if known is None:
        is_coloured, half = loaded.channels == COLOURS, (0.5,) * loaded.channels
        known = Preprocess() if is_coloured else Preprocess(mean=half, std=half)
        notes.append("the file does not tell its normalisation; used: " + ("ImageNet's" if is_coloured else "0.5"))
    preprocess = known.model_copy(update={"image_size": loaded.image_size})
    call = timm_call(loaded.config, loaded.image_size, None, loaded.channels)
    return LoadedBody(BeitBody(loaded.model), preprocess, short_name(source), call, tuple(notes))


def _load_timm(name: str, config: EncoderConfig) -> LoadedBody:
    weights = config.weights or (PACKAGED if name == PACKAGED_NETWORK and _has_package() else None)
    options: dict[str, Any] = {"num_classes": 0}
    if weights is not None and weights != RANDOM:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": read_network(name, weights)}}
    elif weights is None:
        options |= {"pretrained": True}
    if config.image_size is not None and _takes_size(name):
        options["img_size"] = config.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _create(name, options, is_local=weights is not None)
    model = model.eval().requires_grad_(False)
    preprocess = timm_preprocess(model.pretrained_cfg)  # type: ignore[arg-type]  # a dict that timm puts on the module
    if weights == PACKAGED:
        preprocess = preprocess.model_copy(update={"mean": PACKAGED_MEAN, "std": PACKAGED_STD})
    size = config.image_size or getattr(getattr(model, "patch_embed", None), "img_size", None) or preprocess.image_size
    preprocess = preprocess.model_copy(update={"image_size": size[0] if isinstance(size, tuple) else size})
    body: Body = BeitBody(model) if isinstance(model, Beit) else TimmBody(model)
    notes = ("the weights are random: its vectors mean nothing",) if weights == RANDOM else ()
    sizes = {"img_size": options["img_size"]} if "img_size" in options else {}
    call = TimmCall(name.partition(".")[0], {"num_classes": 0, **sizes})
    return LoadedBody(body, preprocess, name, call, notes)


def _create(name: str, options: dict[str, Any], *, is_local: bool) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # of the network, of the hub, of the file, of the model: each library has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        if is_local:
            raise EncoderError(f"timm cannot build '{name}' with {sorted(options)}: {reason}") from error
        raise WeightsError(
            f"timm cannot get the weights of '{name}': {reason} Without a network name a file that holds them: "
            "weights=FILE, or weights=random for none"
        ) from error


def _is_beit(name: str) -> bool:
    return name.partition(".")[0] in timm.list_models(module="beit")


def _takes_size(name: str) -> bool:
    """Whether the model has to know its image size beforehand, as transformers have."""
    with torch.device("meta"):
        return hasattr(timm.create_model(name), "patch_embed")


def _has_package() -> bool:
    return importlib.util.find_spec(PACKAGED_MODULE) is not None


def short_name(source: str) -> str:
    """The name of a file or a run, without the folders before it."""
    if source.startswith(TIMM):
        return source.removeprefix(TIMM)
    path = Path(source).expanduser().resolve()
    return path.name if path.is_dir() else path.stem
