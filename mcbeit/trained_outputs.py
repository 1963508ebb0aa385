"""What becomes of the last layers of a trained segmenter or detector that a run of other images goes on from.

They go on if the classes are the same: as many, and of the same names in the same order, where both are known.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcbeit.atomic import write_json
from mcbeit.errors import WeightsError
from mcbeit.initial_weights import place_with_hash
from mcbeit.runfolder import writing
from mcbeit.weight_account import Account, some

CLASSES = "classes.json"  # in the run folder: what the outputs of the model mean


class Outputs(NamedTuple):
    """The classes of a model."""

    number: int
    names: Sequence[str] | None  # in their order; None: not known


class Verdict(NamedTuple):
    """Whether last layers go on, and why."""

    goes_on: bool
    why: str


def keep_classes(run: Path, names: Sequence[str]) -> None:
    """Write down in the run folder what the outputs mean."""
    with writing("the list of classes", run):
        write_json(run / CLASSES, {"classes": list(names)})


def outputs_of(run: Path | None, number: int) -> Outputs:
    """The classes of a trained model; their names are known of runs of ours, but not of old ones.

    Raises WeightsError if the list of a run is not one of as many names.
    """
    if run is None or not (run / CLASSES).is_file():
        return Outputs(number, None)
    names = _listed(run / CLASSES)
    if names is None or len(names) != number:
        found = "no such list" if names is None else f"{len(names)} of them"
        raise WeightsError(
            f"'{run / CLASSES}' should name the {_count(Outputs(number, names))} of the weights, a list under "
            f"'classes'; it has {found}. Mend it, or remove it: their number alone decides then what starts anew"
        )
    return Outputs(number, names)


def _listed(file: Path) -> list[str] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # ValueError: no JSON, or no UTF-8
        return None
    names = found.get("classes") if isinstance(found, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def compare(trained: Outputs, wanted: Outputs) -> Verdict:
    """Whether layers for the classes of the weights say the classes of the images."""
    if trained.number != wanted.number:
        return Verdict(False, f"the weights have {_count(trained)}, the images {wanted.number}")
    if trained.names is None or wanted.names is None:
        return Verdict(True, f"both have {_count(trained)}, of names that are not known: right for the same ones only")
    other = [pair for pair in zip(trained.names, wanted.names, strict=True) if pair[0] != pair[1]]
    if not other:
        return Verdict(True, f"both have the same {_count(trained)}, by name")
    return Verdict(
        False,
        f"both have {_count(trained)}, but {len(other)} of other names, such as '{other[0][0]}' in the weights and "
        f"'{other[0][1]}' in the images",
    )


def _count(outputs: Outputs) -> str:
    return f"{outputs.number} class{'es' * (outputs.number != 1)}"


@torch.no_grad()
def take_over(
    model: nn.Module,
    state: Mapping[str, Tensor],
    account: Account,
    keys: Mapping[str, str],
    *,
    last: Collection[str],
    called: str,
    verdict: Verdict,
) -> str:
    """Give a model the parameters and buffers of a trained one; returns the account of it, in one line.

    `last` are those of the last layers, which are called so, and `keys` what the file calls its own. What the account
    says to start anew stays as it is.
    """
    anew = {f"backbone.{name}" for name in account.fresh}
    if not verdict.goes_on:
        for name in last:
            account.note(keys[name], "ignored", f"starts anew: {verdict.why}")
        anew |= set(last)
    for name, value in model.state_dict().items():
        if name not in anew:
            value.copy_(state[name])
    fate, place = "go on" if verdict.goes_on else "start anew", place_with_hash(Path(account.origin))
    layers = some(dict.fromkeys(name.rpartition(".")[0] for name in last))
    return f"starts from {place}: {account.summary()}; {called} ({layers}) {fate}: {verdict.why}"
