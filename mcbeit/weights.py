"""Weights of a backbone from anywhere, with an account of every key.

    weights = read_weights("checkpoint-799.pth")    # or a run folder, a .safetensors file, timm:NAME
    print(weights.model, weights.account.counts())

`read_weights` opens a source and brings its tensors under the names that the official code, timm and we share;
`weight_fitting.py` makes of them what a backbone of a given config and image size takes.
"""

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor

from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.relative_position import resize_table
from mcbeit.vit import ModelConfig, resize_positions
from mcbeit.weight_account import Account, some
from mcbeit.weight_architecture import (
    BLOCK_TABLE,
    CLASSIFIER,
    SHARED_TABLE,
    VOCABULARY_HEAD,
    check_shapes,
    has_one_table,
    infer_model,
    model_shapes,
    num_channels,
)
from mcbeit.weight_files import StoredWeights, open_weights

Layout = Literal["mcbeit", "timm", "official-pretrain", "official-finetune"]
LAYOUTS: tuple[Layout, ...] = ("mcbeit", "timm", "official-pretrain", "official-finetune")
INDEX = "relative_position_index"
DENSE_PART = re.compile(r"(decode_head|auxiliary_head|pyramid|fpn[1-4])\.")  # of a segmenter: its backbone is the rest
SEGMENTER_PART = "part of a segmenter, which is no part of a backbone"
DETECTOR_SCORES = "roi_heads.box_predictor.cls_score.weight"  # of a detector
POOLED_NORM = ("fc_norm.weight", "fc_norm.bias")  # which published segmenters have no use for
HEADS = {
    **dict.fromkeys(VOCABULARY_HEAD, "vocabulary head, which is no part of a backbone"),
    **dict.fromkeys(CLASSIFIER, "classifier, which is no part of a backbone"),
}


@dataclass(frozen=True)
class Weights:
    """Tensors by the names of the official code, in the dtype of the file, and what model they are."""

    origin: str
    layout: Layout
    container: str  # the entries of the file that led to them
    tensors: dict[str, Tensor]
    keys: dict[str, str]  # name -> key of the file
    account: Account  # of what reading made of the keys; complete once `fit_backbone` has added its part
    model: ModelConfig
    image_size: int  # pixels
    preprocess: Preprocess | None  # None: the file does not tell
    path: Path | None

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        side = self.image_size // self.model.patch_size
        return side, side

    @property
    def channels(self) -> int:
        """Channels of its images; 3 are colours."""
        return num_channels(self.tensors)

    @property
    def vocab_size(self) -> int | None:
        """Codes of the vocabulary head, if there is one."""
        return len(self.tensors["lm_head.bias"]) if "lm_head.bias" in self.tensors else None

    @property
    def num_classes(self) -> int | None:
        """Classes of the classifier, if there is one."""
        return len(self.tensors["head.bias"]) if "head.bias" in self.tensors else None

    def resized(self, image_size: int) -> "Weights":
        """The same weights for another image size. Raises WeightsError unless it is a whole number of patches."""
        patch, old = self.model.patch_size, self.grid
        if image_size % patch:
            raise WeightsError(f"image size {image_size} is no multiple of {patch}, the patch size of '{self.origin}'")
        new = (image_size // patch, image_size // patch)
        if new == old:
            return self
        tensors, account = dict(self.tensors), copy.deepcopy(self.account)
        sizes = f"{old[0]} x {old[1]} to {new[0]} x {new[1]} patches"
        for name, value in tensors.items():
            if name == SHARED_TABLE or name.endswith(f".{BLOCK_TABLE}"):
                tensors[name] = resize_table(value, old, new)
                account.note(self.keys[name], "resized", f"bias table, {sizes} on a geometric progression")
            elif name == "pos_embed":
                tensors[name] = resize_positions(value, old, new)
                account.note(self.keys[name], "resized", f"positions, {sizes}, bicubic")
        return replace(self, tensors=tensors, account=account, image_size=image_size)

    def with_tables(self, kind: Literal["shared", "per-block"]) -> "Weights":
        """The same function with one bias table for all blocks, or with one in each.

        Raises WeightsError if the blocks have different tables, which one table cannot say.
        """
        if not self.model.is_relative or self.model.bias_tables == kind:
            return self
        tensors, keys, account = dict(self.tensors), dict(self.keys), copy.deepcopy(self.account)
        depth = self.model.shape[1]
        names = [f"blocks.{i}.{BLOCK_TABLE}" for i in range(depth)]
        if kind == "per-block":
            table, key = tensors.pop(SHARED_TABLE), keys.pop(SHARED_TABLE)
            tensors |= {name: table.clone() for name in names}
            keys |= dict.fromkeys(names, key)
            account.note(key, "converted", f"shared table, copied to {depth} blocks")
        else:
            if not has_one_table(tensors, depth):
                raise WeightsError(
                    f"the {depth} blocks of '{self.origin}' have bias tables of their own, which differ: they do not "
                    "fit into one shared table. Keep them per block"
                )
            for name in names:
                tensors[SHARED_TABLE], keys[SHARED_TABLE] = tensors.pop(name), keys.pop(name)
                account.note(keys[SHARED_TABLE], "converted", f"the same table in {depth} blocks, now shared")
        model = self.model.model_copy(update={"bias_tables": kind})
        return replace(self, tensors=tensors, keys=keys, account=account, model=model)


def read_weights(source: str | Path, *, num_heads: int | None = None) -> Weights:
    """Read a run folder, a .safetensors file, a checkpoint of the official code, or timm:NAME.

    `num_heads` counts where the file does not tell it. Raises WeightsError that names every key that is unknown,
    missing, of another size than the others demand, or not finite.
    """
    return weights_of(open_weights(source), num_heads=num_heads)


def weights_of(stored: StoredWeights, *, num_heads: int | None = None) -> Weights:
    """`read_weights` of tensors that have been read."""
    account = Account(stored.origin, (*stored.tensors, *stored.beside))
    for key, why in stored.beside.items():
        account.note(key, "ignored", why)
    names = stored.names()
    if DETECTOR_SCORES in names:
        raise WeightsError(
            f"'{stored.origin}' is a detector, whose backbone no other job can take: it has no cls token, its bias "
            "tables lack the rows of one, and its blocks learned on windows. As init it is for detection alone; "
            "`mcbeit bench run -t detection` measures it, mcbeit.detection.loading reads it; for other jobs name the "
            "weights that it started from"
        )
    tensors, keys = take_tensors(stored, names, account)
    dense = [name for name in tensors if DENSE_PART.match(name)]
    for name in dense:
        account.note(keys.pop(name), "ignored", SEGMENTER_PART)
        del tensors[name]
    if stored.known.model is not None and stored.known.image_size is not None:
        model, image_size = stored.known.model, stored.known.image_size
    else:
        model, image_size = infer_model(tensors, stored.origin, num_heads=num_heads, needs_norm=not dense)
    preprocess = stored.known.preprocess
    known = model_shapes(model, image_size, num_channels(tensors)).keys() | HEADS.keys()
    account.refuse(keys[name] for name in tensors if name not in known)
    check_shapes(tensors, model, image_size, stored.origin, optional=POOLED_NORM if dense else ())
    weights = Weights(
        origin=stored.origin,
        layout=detect_layout(stored, names),
        container=stored.container,
        tensors=tensors,
        keys=keys,
        account=account,
        model=model,
        image_size=image_size,
        preprocess=preprocess and preprocess.model_copy(update={"image_size": image_size}),
        path=stored.path,
    )
    _check_indices(stored, names, weights.grid)
    return weights


def detect_layout(stored: StoredWeights, names: Collection[str]) -> Layout:
    """Whose layout the names of a file are. timm's and that of finetuned models differ by index buffers only."""
    if stored.is_ours:
        return "mcbeit"
    has_index = any(name.endswith(INDEX) for name in names)
    is_official = has_index or stored.is_pickle
    if "lm_head.weight" in names or "mask_token" in names or (SHARED_TABLE in names and is_official):
        return "official-pretrain"
    return "official-finetune" if is_official else "timm"


def take_tensors(
    stored: StoredWeights, names: dict[str, str], account: Account
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and their keys: without index buffers, with a whole bias of qkv in its parts."""
    tensors: dict[str, Tensor] = {}
    keys: dict[str, str] = {}
    for name, key in names.items():
        value = stored.tensors[key]
        if name.endswith(INDEX):
            account.note(key, "ignored", "index buffer, computed anew")
        elif name.endswith(".attn.qkv.bias") and value.ndim == 1 and len(value) % 3 == 0:
            query, middle, last = value.chunk(3)
            stem = name.removesuffix("qkv.bias")
            if doubled := sorted({f"{stem}q_bias", f"{stem}v_bias"} & names.keys()):
                raise WeightsError(f"'{stored.origin}' has '{key}' and also {some(doubled)}; keep one of the two forms")
            tensors |= {f"{stem}q_bias": query, f"{stem}v_bias": last}
            keys |= {f"{stem}q_bias": key, f"{stem}v_bias": key}
            account.note(key, "converted", "split; " + ("the keys' part is zero" if not middle.any() else KEY_BIAS))
        else:
            tensors[name], keys[name] = value, key
    return tensors, keys


KEY_BIAS = "the keys' part is left out: it adds the same to all scores of a query, which softmax takes away"


def _check_indices(stored: StoredWeights, names: dict[str, str], grid: tuple[int, int]) -> None:
    """Raises WeightsError if an index buffer is not that of the rule: the bias tables would mean something else."""
    wanted = gen_relative_position_index(grid)
    indices = [key for name, key in names.items() if name.endswith(INDEX)]
    if other := [key for key in indices if not torch.equal(stored.tensors[key].long(), wanted)]:
        raise WeightsError(
            f"'{stored.origin}' reads its bias tables in another order than BEiT does on {grid[0]} x {grid[1]} "
            f"patches: {some(other)}"
        )
