"""What `mcbeit weights show` says of weights: the model, and the account of every key."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcbeit.preprocess import Preprocess
from mcbeit.vit import ModelConfig
from mcbeit.weight_account import Account
from mcbeit.weight_fitting import plan_backbone
from mcbeit.weights import Weights

POSITIONS = {
    "relative": "relative positions",
    "relative+sincos": "relative and absolute positions",
    "relative+learned": "relative and absolute positions",
    "learned": "absolute positions",
}


@dataclass(frozen=True)
class Description:
    """Weights in words and numbers."""

    weights: Weights
    image_size: int  # pixels that they would be loaded for
    account: Account

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors have each dtype."""
        return dict(Counter(str(value.dtype).removeprefix("torch.") for value in self.weights.tensors.values()))

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors, heads included."""
        return sum(value.numel() for value in self.weights.tensors.values())

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        weights = self.weights
        return {
            "origin": weights.origin,
            "layout": weights.layout,
            "container": weights.container,
            "model": weights.model.model_dump(mode="json"),
            "image_size": weights.image_size,
            "loaded_for_image_size": self.image_size,
            "vocab_size": weights.vocab_size,
            "num_classes": weights.num_classes,
            "parameters": self.num_parameters,
            "dtypes": self.dtypes,
            "preprocess": None if weights.preprocess is None else weights.preprocess.model_dump(mode="json"),
            "account": self.account.as_json(),
        }


def describe(weights: Weights, *, image_size: int | None = None) -> Description:
    """What loading the weights as a backbone would make of every key, at their own size or at another one."""
    size = image_size or weights.image_size
    _, account = plan_backbone(weights, weights.model, size)
    return Description(weights, size, account)


def text(description: Description) -> str:
    """Aligned lines: the facts, then the keys of each fate and rule, those of all blocks in one word."""
    return "\n".join(table_lines(description.weights.origin, facts(description), description.account))


def table_lines(origin: str, facts: Sequence[tuple[str, str]], account: Account) -> list[str]:
    """Facts as pairs of a word and a line, then what became of the keys."""
    rows = [*facts, ("account", account.summary())]
    width = max(len(name) for name, _ in rows)
    lines = [origin, *(f"  {name:{width}}  {value}" for name, value in rows)]
    for entry, keys in account.by_rule().items():
        lines.append(f"{entry.fate} {len(keys)}" + (f": {entry.rule}" if entry.rule else ""))
        lines += [f"  {name}" + (f"  ({number} blocks)" if number > 1 else "") for name, number in in_blocks(keys)]
    return lines + [f"starts anew, {why}: {name}" for name, why in account.fresh.items()]


def facts(description: Description) -> list[tuple[str, str]]:
    """What the weights are, as pairs of a word and a line."""
    weights, model = description.weights, description.weights.model
    tables = "" if not model.is_relative else ", one table" if model.bias_tables == "shared" else ", a table per block"
    norm = "norm of every token" if model.final_norm == "tokens" else "norm of pooled tokens"
    ends = [f"{weights.vocab_size} codes"] * (weights.vocab_size is not None)
    ends += [f"{weights.num_classes} classes"] * (weights.num_classes is not None)
    dtypes = ", ".join(f"{number} {name}" for name, number in description.dtypes.items())
    grid = f"{weights.grid[0]} x {weights.grid[1]} patches of {model.patch_size} px"
    size = f"{weights.image_size} px" + f", loaded for {description.image_size} px" * (
        description.image_size != weights.image_size
    )
    return [
        ("layout", weights.layout + (f", under '{weights.container}'" if weights.container else "")),
        ("model", blocks(model)),
        ("", f"{POSITIONS[model.position]}{tables}; {scaling(model)}; {norm}"),
        ("images", f"{size}; {grid}"),
        ("heads", ", ".join(ends) or "none"),
        (
            "numbers",
            f"{description.num_parameters:,} in {len(weights.tensors)} tensors ({dtypes}){_file_size(weights.path)}",
        ),
        ("preprocess", _preprocess(weights.preprocess)),
    ]


def blocks(model: ModelConfig) -> str:
    """The shape of a backbone."""
    dim, depth, heads = model.shape
    return f"{depth} blocks, width {dim}, {heads} heads, MLP {int(dim * model.mlp_ratio)}"


def scaling(model: ModelConfig) -> str:
    """Whether branches are scaled."""
    return "layer scale" if model.layer_scale else "no layer scale"


def in_blocks(keys: Iterable[str]) -> list[tuple[str, int]]:
    """The keys with `*` for the number of the block, and how many each then stands for."""
    return list(Counter(re.sub(r"\bblocks\.\d+\.", "blocks.*.", key) for key in keys).items())


def _file_size(path: Path | None) -> str:
    return "" if path is None else f", file of {path.stat().st_size / 1e6:,.1f} MB"


def _preprocess(preprocess: Preprocess | None) -> str:
    if preprocess is None:
        return colours(None)
    size = f"{preprocess.image_size} px of {preprocess.crop_fraction:.4g}, {preprocess.interpolation}"
    return f"{size}, {colours(preprocess)}"


def colours(preprocess: Preprocess | None) -> str:
    """How images are normalised."""
    if preprocess is None:
        return "not in the file"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"mean {mean}, std {std}"
