"""Segmenters from files: runs of ours, and checkpoints of the official code in the layout of mmsegmentation.

The backbone is read as all backbones are; every key of the heads is accounted for too, nothing is passed over in
silence.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mcbeit.config import read_values, validate
from mcbeit.errors import WeightsError
from mcbeit.preprocess import Preprocess
from mcbeit.segmentation.segmenter import HeadConfig, Segmenter, default_taps
from mcbeit.vit import ModelConfig, VisionTransformer
from mcbeit.weight_account import Account, some
from mcbeit.weight_files import TIMM, StoredWeights, open_weights, run_of
from mcbeit.weight_fitting import fit_backbone, hollow_backbone
from mcbeit.weights import DENSE_PART, SEGMENTER_PART, weights_of

SCORES, AUXILIARY_SCORES = "decode_head.conv_seg.weight", "auxiliary_head.conv_seg.weight"
BATCHES = "num_batches_tracked"  # of batch norms: not needed to use them, and old files have none


class LoadedSegmenter(NamedTuple):
    """A trained segmenter in evaluation mode, and what is known of it."""

    model: Segmenter
    config: ModelConfig  # of its backbone
    image_size: int  # pixels, of its windows
    channels: int  # of its images
    preprocess: Preprocess | None  # None: the file does not tell
    run: Path | None  # that it is of; None: it is no run of ours
    account: Account
    keys: dict[str, str]  # parameter or buffer of the pyramid and the heads -> key of the file


def holds_segmenter(source: str | Path) -> bool:
    """Whether weights are those of a segmenter. Raises WeightsError if they cannot be read."""
    return not str(source).startswith(TIMM) and is_segmenter(open_weights(source))


def is_segmenter(stored: StoredWeights) -> bool:
    """`holds_segmenter` of tensors that have been read."""
    return SCORES in stored.names()


def load_segmenter(source: str | Path) -> LoadedSegmenter:
    """Read a segmenter. Raises WeightsError that names every key that is missing, unknown or of another size."""
    return segmenter_of(open_weights(source))


def segmenter_of(
    stored: StoredWeights,
    *,
    config: ModelConfig | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
) -> LoadedSegmenter:
    """`load_segmenter` of tensors that have been read, at their image size or at another one.

    `config` is the backbone that the weights should fit, by default their own; `num_heads` counts where they do not
    tell it.
    """
    weights = weights_of(stored, num_heads=num_heads)
    heads = {name: key for name, key in stored.names().items() if DENSE_PART.match(name)}
    if SCORES not in heads:
        raise WeightsError(f"'{stored.origin}' is no segmenter: it has no '{SCORES}'; it holds {some(stored.tensors)}")
    config, image_size = config or weights.model, image_size or weights.image_size
    state, account = fit_backbone(weights, config, image_size)
    run = None if stored.path is None else run_of(stored.path.parent)
    model = _hollow(stored, run, hollow_backbone(config, image_size, weights.channels))
    found = {f"backbone.{name}": value for name, value in state.items()}
    wanted, keys = model.state_dict(), dict[str, str]()
    for name, key in heads.items():
        ours = name if not name.startswith("fpn") else f"pyramid.{name}"
        if ours in wanted:
            found[ours] = stored.tensors[key].to(wanted[ours].dtype, copy=True)
            keys[ours] = key
            account.entries.pop(key)
            account.note(key, "loaded")
    _check(found, wanted, account, stored.origin)
    counts = {name: torch.zeros_like(value, device="cpu") for name, value in wanted.items() if name.endswith(BATCHES)}
    model.load_state_dict({**counts, **found}, assign=True)
    known = weights.preprocess
    return LoadedSegmenter(model.eval(), config, image_size, weights.channels, known, run, account, keys)


def _hollow(stored: StoredWeights, run: Path | None, backbone: VisionTransformer) -> Segmenter:
    """A segmenter of the shape of the tensors, without numbers; only a run of ours tells its taps."""
    scores, names = stored.tensors[stored.names()[SCORES]], stored.names()
    if AUXILIARY_SCORES not in names:
        raise WeightsError(
            f"'{stored.origin}' lacks the auxiliary head: '{AUXILIARY_SCORES}'; {_backbone_alone(stored.origin)}"
        )
    values = {} if run is None else read_values(run / "config.yaml").get("head", {})
    with torch.device("meta"):
        return Segmenter(
            backbone,
            len(scores),
            taps=validate(HeadConfig, values, origin=str(run)).taps or default_taps(len(backbone.blocks)),
            channels=scores.shape[1],
            auxiliary_channels=stored.tensors[names[AUXILIARY_SCORES]].shape[1],
            auxiliary_weight=HeadConfig().auxiliary_weight,
        )


def _backbone_alone(source: str) -> str:
    return f"its backbone alone is what `mcbeit weights convert '{source}' backbone.safetensors --to mcbeit` writes"


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], account: Account, source: str) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith(BATCHES)]
    wrong = [
        f"{name} is {list(value.shape)}, not {list(wanted[name].shape)}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    surplus = [key for key, entry in account.entries.items() if entry.rule == SEGMENTER_PART]
    told = (("lacks", missing), ("has too much:", surplus), ("has other sizes:", wrong))
    if complaints := [f"it {verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{source}' does not fit the segmenter: {'; '.join(complaints)}; {_backbone_alone(source)}")
    if broken := [name for name, value in found.items() if not bool(torch.isfinite(value).all())]:
        raise WeightsError(f"'{source}' holds numbers that are not finite (NaN or infinite): {some(broken)}")
    account.check_complete()
