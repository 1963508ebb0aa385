"""Where weights come from: run folders, .safetensors files, checkpoints of the official code, timm.

Each gives the tensors by the keys of the file, and what else it tells of the model. Nothing in a file is executed.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from torch import Tensor

from mcbeit.checkpoint import CheckpointFolder, is_complete
from mcbeit.config import read_values, validate
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.pickle_values import InertObject
from mcbeit.preprocess import Preprocess
from mcbeit.unpickle import read_checkpoint
from mcbeit.vit import ModelConfig
from mcbeit.weight_account import some
from mcbeit.weight_manifest import read_manifest

TIMM = "timm:"
CONTAINERS = ("model", "module", "state_dict", "state_dict_ema", "model_ema")  # the first that is there counts
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")  # of wrappers; any of them, in any order
TRAINING_STATE = {  # entries that hold tensors, but not weights: of the official code, DeepSpeed, Lightning, timm
    *("optimizer", "optimizer_states", "scaler", "amp_scaler", "lr_scheduler", "lr_schedulers", "callbacks"),
    *("data_sampler", "random_ltd", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params"),
    "trainer",  # of detectron2
}
DEEPSPEED = "mp_rank_00_model_states.pt"  # in the folder of a DeepSpeed checkpoint
JOBS = ("pretrain", "finetune", "segmentation")  # whose runs have a backbone for other jobs
DETECTION = "detection"  # whose runs have one that is for detection only
KINDS = "a run folder, a .safetensors file, a checkpoint of the official code (.pth, .pt, .bin) or timm:NAME"
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest")


@dataclass(frozen=True)
class Known:
    """What is known of a model without looking at its tensors."""

    model: ModelConfig | None = None
    image_size: int | None = None
    preprocess: Preprocess | None = None
    file: str = "model.safetensors"  # of a checkpoint of a run: the weights that count


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a file by the file's keys, what lies beside them, and what is known of the model."""

    origin: str
    tensors: dict[str, Tensor]
    path: Path | None = None  # the file itself; None for timm
    is_ours: bool = False
    is_pickle: bool = False
    container: str = ""  # the entries that the tensors were found under, as `model` or `model.module`
    beside: dict[str, str] = field(default_factory=dict)  # other entries of the file -> why they are ignored
    known: Known = Known()

    def names(self) -> dict[str, str]:
        """The name of each tensor without the prefixes of wrappers -> its key. Raises WeightsError if two are alike."""
        found: dict[str, str] = {}
        for key in self.tensors:
            name = strip_prefixes(key)
            if name in found:
                raise WeightsError(
                    f"'{self.origin}' holds two tensors for '{name}': '{found[name]}' and '{key}'; keep one of them"
                )
            found[name] = key
        return found


def open_weights(source: str | Path) -> StoredWeights:
    """Read the tensors of a source, which is one of KINDS. Raises WeightsError if it is none, or cannot be read."""
    if str(source).startswith(TIMM):
        return _open_timm(str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WeightsError(f"there are no weights at '{source}'; name {KINDS}")
    run = run_of(path.parent)
    if run is not None and path.suffix == ".safetensors":
        return _open_ours(path, read_run(run))
    manifest = read_manifest(path) if path.suffix == ".safetensors" else None
    if manifest is not None:
        return _open_ours(path, Known(manifest.model, manifest.image_size, manifest.preprocess))
    value = read_checkpoint(path)
    state, container, beside = unwrap(value, str(path))
    return StoredWeights(
        origin=str(path),
        tensors=state,
        path=path,
        is_pickle=path.suffix != ".safetensors",
        container=container,
        beside=beside,
        known=Known(preprocess=official_preprocess(value)),
    )


def strip_prefixes(key: str) -> str:
    """The key without the prefixes that wrappers put before it."""
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key


def read_run(run: Path) -> Known:
    """What the config of a run tells of its model. Raises WeightsError if it is a kind of run without a backbone."""
    try:
        values = read_values(run / "config.yaml")
        job = values.get("job", "pretrain")
        if job not in (*JOBS, DETECTION):
            raise WeightsError(
                f"'{run}' is a {job} run, which has no backbone; name a run whose job is {' or '.join(JOBS)}"
            )
        model = validate(ModelConfig, values.get("model", {}), origin=str(run))
        preprocess = validate(Preprocess, values.get("preprocess", {}), origin=str(run))
    except ConfigError as error:
        raise WeightsError(f"the run '{run}' cannot be read: {error}") from error
    is_averaged = job == "finetune" and (values.get("optim") or {}).get("ema_decay") is not None
    return Known(
        model, preprocess.image_size, preprocess, file="teacher.safetensors" if is_averaged else "model.safetensors"
    )


def unwrap(value: Any, origin: str) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """The state dict in what a checkpoint holds, the entries that led to it, and what lies beside it.

    Raises WeightsError if there is none, or if something beside it or in it is neither weights nor training state.
    """
    path: list[str] = []
    beside: dict[str, str] = {}
    while isinstance(value, Mapping):
        inner = next((name for name in CONTAINERS if isinstance(value.get(name), Mapping)), None)
        if inner is None:
            break
        for name, other in value.items():
            if name != inner:
                beside[".".join([*path, str(name)])] = _why_ignored(str(name), other, origin)
        path.append(inner)
        value = value[inner]
    if not isinstance(value, Mapping) or not any(isinstance(tensor, Tensor) for tensor in value.values()):
        raise WeightsError(
            f"'{origin}' holds no weights: neither tensors by name nor an entry {', '.join(CONTAINERS)}, but "
            f"{_describe(value)}"
        )
    if wrong := [
        str(key) for key, tensor in value.items() if not (isinstance(key, str) and isinstance(tensor, Tensor))
    ]:
        raise WeightsError(f"'{origin}' holds what is no tensor among its weights: {some(wrong)}; take it out")
    return dict(value), ".".join(path), beside


def official_preprocess(value: Any) -> Preprocess | None:
    """The preprocessing that the options of the official code tell, which it keeps as `args`; None without them."""
    options = value.get("args") if isinstance(value, Mapping) else None
    state = options.state if isinstance(options, InertObject) else options
    if not isinstance(state, Mapping) or not isinstance(state.get("imagenet_default_mean_and_std"), bool):
        return None
    size = state.get("input_size", 224)
    if not isinstance(size, int) or size < 1:
        return None
    constants = {} if state["imagenet_default_mean_and_std"] else {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return Preprocess(image_size=size, crop_fraction=0.875 if size < 384 else 1.0, **constants)


def _open_folder(path: Path) -> StoredWeights:
    if (path / DEEPSPEED).is_file():
        return open_weights(path / DEEPSPEED)
    run = run_of(path)
    if run is not None:
        if not is_complete(path):
            raise WeightsError(f"'{path}' is not a complete checkpoint")
        known = read_run(run)
        return _open_ours(path / known.file, known)
    if not (path / "config.yaml").is_file():
        raise WeightsError(f"the folder '{path}' is no run: it has no config.yaml; name {KINDS}")
    known, checkpoints = read_run(path), CheckpointFolder(path / "checkpoints")
    if not (steps := checkpoints.steps()):
        raise WeightsError(
            f"the run '{path}' has no complete checkpoint yet; go on with: mcbeit train {path / 'config.yaml'} --resume"
        )
    return _open_ours(checkpoints.folder(steps[-1]) / known.file, known)


def run_of(folder: Path) -> Path | None:
    """The run that a folder is a checkpoint of, if it is one."""
    folder = folder.absolute()
    is_checkpoint = re.fullmatch(r"step-\d+", folder.name) and folder.parent.name == "checkpoints"
    return folder.parent.parent if is_checkpoint and (folder.parent.parent / "config.yaml").is_file() else None


def _open_ours(path: Path, known: Known) -> StoredWeights:
    tensors, container, beside = unwrap(read_checkpoint(path), str(path))
    return StoredWeights(str(path), tensors, path, is_ours=True, container=container, beside=beside, known=known)


def _open_timm(source: str) -> StoredWeights:
    """The pretrained weights of a BEiT of timm, from its cache or its hub."""
    name, beits = source.removeprefix(TIMM), timm.list_models(module="beit")
    if not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, beits, n=1)
        hint = f"; did you mean timm:{close[0]}?" if close else ""
        raise WeightsError(f"timm has no model '{name}'{hint}; it has {', '.join(beits)}")
    try:
        with torch.device("meta"):
            kind = type(timm.create_model(name))
    except RuntimeError as error:  # of an unknown tag, which comes after the dot
        known = timm.list_models(f"{name.partition('.')[0]}*", pretrained=True)
        raise WeightsError(f"timm has no weights '{name}'; it has {', '.join(known)}") from error
    if kind is not Beit:
        raise WeightsError(f"'{source}' is a {kind.__name__}, not a BEiT; timm has {', '.join(beits)}")
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, of the hub, of the file: each library has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"timm cannot get the weights of '{name}': {reason} Without a network name a file that holds them"
        ) from error
    return StoredWeights(
        source, dict(model.state_dict()), known=Known(preprocess=timm_preprocess(model.pretrained_cfg))
    )


def timm_preprocess(values: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that a model of timm was trained for, by its `pretrained_cfg`."""
    interpolation, share = values["interpolation"], values["crop_pct"]
    return Preprocess(
        image_size=values["input_size"][-1],
        resize="squash" if values.get("crop_mode") == "squash" and share == 1 else "shorter-side",
        crop_fraction=share,
        interpolation=interpolation if interpolation in INTERPOLATIONS else "bicubic",
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
    )


def _why_ignored(name: str, value: Any, origin: str) -> str:
    """Raises WeightsError for what may be weights that no rule knows."""
    if name in CONTAINERS:
        return "other weights of the same model: another entry of the file counts"
    if name in TRAINING_STATE:
        return "training state, beside the weights"
    if _holds_tensors(value):
        raise WeightsError(f"'{origin}' holds tensors under '{name}', which no rule knows; take that entry out")
    return "no weights, beside them"


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor) and value.numel() > 1


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the entries {some(map(str, value))}" if value else "nothing"
    return repr(value) if isinstance(value, InertObject) else f"a {type(value).__name__}"
