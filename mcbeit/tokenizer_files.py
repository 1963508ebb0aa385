"""Reading the files of tokenizers that others have trained, or that `mcbeit weights convert` has written.

Every key of a file is accounted for: it is loaded, or ignored by a rule that says why; any other one is an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcbeit.config import Config, validate
from mcbeit.errors import ConfigError, WeightsError
from mcbeit.pickle_values import InertObject
from mcbeit.tokenizer import Tokenizer, code_gap
from mcbeit.tokenizer_kinds import KINDS, TokenizerKind, kind_of
from mcbeit.tokenizer_manifest import read_tokenizer_manifest
from mcbeit.unpickle import read_checkpoint
from mcbeit.vqgan import NearestVQGAN
from mcbeit.vqgan_yaml import read_description
from mcbeit.weight_account import Account, some
from mcbeit.weight_files import unwrap

YAML_NAMES = ("model.yaml", "config.yaml")
WEIGHT_NAMES = ("last.ckpt", "model.ckpt", "encoder.pkl")


@dataclass(frozen=True)
class StoredTokenizer:
    """The tensors of a tokenizer by the names of its model, its sizes, and what became of every key of the file."""

    path: Path
    kind: TokenizerKind
    config: Config
    tensors: dict[str, Tensor]
    account: Account

    def build(self) -> Tokenizer:
        """The tokenizer, in float32. Raises WeightsError if a number is not finite."""
        if wrong := [name for name, value in self.tensors.items() if not bool(torch.isfinite(value).all())]:
            raise WeightsError(f"'{self.path}' has numbers that are not finite in {some(wrong)}; get the file again")
        model = self.kind.build(self.config)
        model.load_state_dict(self.tensors)
        if isinstance(model, NearestVQGAN):
            model.default_temperature = code_gap(model.quantize.get_parameter("embedding.weight"))
        return model


def read_tokenizer(path: str | Path, *, kind: str | None = None) -> StoredTokenizer:
    """Read the published files of a tokenizer, or a converted one; `kind` is what they should be, None: any.

    Raises WeightsError if they are of no kind or of another one, and for every key that is missing, unknown or of
    another size.
    """
    path = Path(path).expanduser()
    weights, description = locate(path)
    manifest = read_tokenizer_manifest(weights)
    tensors, beside = _tensors(read_checkpoint(weights), weights)
    found = kind_of(tensors) if manifest is None else KINDS[manifest.tokenizer]
    if found is None:
        raise WeightsError(
            f"'{weights}' is no tokenizer that is known ({', '.join(KINDS)}); it has {some(tensors) or 'no tensors'}"
        )
    if kind is not None and kind != found.name:
        raise WeightsError(f"'{weights}' is a {found.name} tokenizer, not {kind}; set tokenizer.kind={found.name}")
    if manifest is not None:
        config = validate(found.config, manifest.config, origin=str(weights))
    else:
        inferred = _sizes(found, tensors, weights)
        config = inferred if description is None else read_description(description).sizes(found, description)
    account = Account(str(weights), (*tensors, *beside), owner=f"a {found.name} tokenizer")
    for key, why in beside.items():
        account.note(key, "ignored", why)
    return StoredTokenizer(weights, found, config, _fit(found, config, tensors, account), account)


def is_tokenizer(path: str | Path) -> bool:
    """Whether a file or folder is that of a tokenizer, as far as its keys tell."""
    path = Path(path).expanduser()
    if not path.exists() or (path.is_dir() and not any((path / name).is_file() for name in WEIGHT_NAMES)):
        return False
    weights, _ = locate(path)
    try:
        tensors, _ = _tensors(read_checkpoint(weights), weights)
    except WeightsError:
        return False
    return kind_of(tensors) is not None


def locate(path: Path) -> tuple[Path, Path | None]:
    """The file of weights, and the YAML beside it that describes them, if there is one.

    `path` is the folder of both, or either of them. Raises WeightsError if there are no weights.
    """
    if path.is_dir():
        weights = _first(path, WEIGHT_NAMES)
    elif path.suffix in (".yaml", ".yml"):
        weights = _first(path.parent, WEIGHT_NAMES)
    else:
        weights = path
    if not weights.is_file():
        raise WeightsError(f"there are no weights of a tokenizer at '{path}'")
    if weights.suffix != ".ckpt":
        return weights, None
    candidates = [path] if path.suffix in (".yaml", ".yml") else [weights.parent / name for name in YAML_NAMES]
    return weights, next((file for file in candidates if file.is_file()), None)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"the folder '{folder}' has no {', '.join(names[:-1])} or {names[-1]}; name the file itself")
    return found


def _tensors(value: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a checkpoint or of a pickled module by key, and what lies beside them."""
    if isinstance(value, InertObject):
        return module_tensors(value, path), {}
    tensors, _, beside = unwrap(value, str(path))
    return tensors, beside


def module_tensors(module: InertObject, path: Path) -> dict[str, Tensor]:
    """What would be the state dict of a pickled module. Raises WeightsError if it is none, or a net without end."""
    found: dict[str, Tensor] = {}
    seen = set[int]()
    waiting = [("", module)]
    while waiting:
        prefix, part = waiting.pop()
        state = part.state
        if id(part) in seen or not isinstance(state, Mapping) or "_parameters" not in state:
            raise WeightsError(f"'{path}' holds an object of '{part.kind}' where a module of its own should be")
        seen.add(id(part))
        left_out = state.get("_non_persistent_buffers_set") or ()
        for name, value in [*_items(state["_parameters"]), *_items(state.get("_buffers"))]:
            if isinstance(value, Tensor) and name not in left_out:
                found[f"{prefix}{name}"] = value
        inner = [(f"{prefix}{name}.", child) for name, child in _items(state.get("_modules"))]
        waiting += [(name, child) for name, child in reversed(inner) if isinstance(child, InertObject)]
    return found


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def _sizes(kind: TokenizerKind, tensors: Mapping[str, Tensor], path: Path) -> Config:
    try:
        return validate(kind.config, kind.sizes(tensors), origin=str(path))
    except KeyError as error:
        raise WeightsError(f"'{path}' is no whole {kind.name} tokenizer: {error.args[0]} is missing") from None
    except (ValueError, IndexError, TypeError, ZeroDivisionError, ConfigError) as error:
        raise WeightsError(f"'{path}' has shapes that no {kind.name} tokenizer has: {error}") from error


def _fit(kind: TokenizerKind, config: Config, tensors: Mapping[str, Tensor], account: Account) -> dict[str, Tensor]:
    """The tensors that the model has. Raises WeightsError if one is missing, unknown or of another size."""
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in kind.build(config).state_dict().items()}
    for key, value in tensors.items():
        why = next((why for start, why in kind.ignored.items() if key.startswith(start)), None)
        if key in wanted:
            is_single = value.dtype == torch.float32
            account.note(key, "loaded" if is_single else "converted", "" if is_single else f"{value.dtype} to float32")
        elif why is not None:
            account.note(key, "ignored", why)
    account.check_complete()
    if missing := [name for name in wanted if name not in tensors]:
        raise WeightsError(f"'{account.origin}' is no whole {kind.name} tokenizer: it lacks {some(missing)}")
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise WeightsError(f"'{account.origin}' does not fit a {kind.name} tokenizer of its sizes: {some(wrong)}")
    return {name: tensors[name] for name in wanted}
