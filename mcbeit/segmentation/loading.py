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
from mcbeit.segmentation.segmenter import Segmenter, default_taps
from mcbeit.segmentation.setup import HeadConfig, SegmentationConfig
from mcbeit.vit import VisionTransformer
from mcbeit.weight_account import Account, some
from mcbeit.weight_files import StoredWeights, open_weights, run_of
from mcbeit.weight_fitting import fit_backbone, hollow_backbone
from mcbeit.weights import DENSE_PART, weights_of

SCORES = "decode_head.conv_seg.weight"
BATCHES = "num_batches_tracked"  # of batch norms: not needed to use them, and old files have none


class LoadedSegmenter(NamedTuple):
    """A trained segmenter in evaluation mode, and what is known of it."""

    model: Segmenter
    image_size: int  # pixels, of its windows
    preprocess: Preprocess | None  # None: the file does not tell
    config: SegmentationConfig | None  # of its run; None: it is no run of ours
    account: Account


def holds_segmenter(source: str | Path) -> bool:
    """Whether weights are those of a segmenter. Raises WeightsError if they cannot be read."""
    return SCORES in open_weights(source).names()


def load_segmenter(source: str | Path) -> LoadedSegmenter:
    """Read a segmenter. Raises WeightsError that names every key that is missing, unknown or of another size."""
    stored = open_weights(source)
    weights = weights_of(stored)
    heads = {name: key for name, key in stored.names().items() if DENSE_PART.match(name)}
    if SCORES not in heads:
        raise WeightsError(f"'{source}' is no segmenter: it has no '{SCORES}'; it holds {some(stored.tensors)}")
    state, account = fit_backbone(weights, weights.model, weights.image_size)
    config = _config_of(stored)
    taps = default_taps(weights.model.shape[1]) if config is None else config.taps
    model = _hollow(stored, taps, hollow_backbone(weights.model, weights.image_size, weights.channels))
    found = {f"backbone.{name}": value for name, value in state.items()}
    wanted = model.state_dict()
    for name, key in heads.items():
        ours = name if not name.startswith("fpn") else f"pyramid.{name}"
        if ours in wanted:
            found[ours] = stored.tensors[key].to(wanted[ours].dtype, copy=True)
            account.entries.pop(key)
            account.note(key, "loaded")
    _check(found, wanted, account, str(source))
    counts = {name: torch.zeros_like(value, device="cpu") for name, value in wanted.items() if name.endswith(BATCHES)}
    model.load_state_dict({**counts, **found}, assign=True)
    return LoadedSegmenter(model.eval(), weights.image_size, weights.preprocess, config, account)


def _hollow(stored: StoredWeights, taps: tuple[int, ...], backbone: VisionTransformer) -> Segmenter:
    """A segmenter of the shape of the tensors, without numbers."""
    scores = stored.tensors[stored.names()[SCORES]]
    auxiliary = stored.names().get("auxiliary_head.conv_seg.weight")
    if auxiliary is None:
        raise WeightsError(f"'{stored.origin}' lacks the auxiliary head: 'auxiliary_head.conv_seg.weight'")
    with torch.device("meta"):
        return Segmenter(
            backbone,
            len(scores),
            taps=taps,
            channels=scores.shape[1],
            auxiliary_channels=stored.tensors[auxiliary].shape[1],
            auxiliary_weight=HeadConfig().auxiliary_weight,
        )


def _config_of(stored: StoredWeights) -> SegmentationConfig | None:
    """The config of the run of ours that the weights lie in."""
    run = None if stored.path is None else run_of(stored.path.parent)
    return None if run is None else validate(SegmentationConfig, read_values(run / "config.yaml"), origin=str(run))


def _check(found: dict[str, Tensor], wanted: dict[str, Tensor], account: Account, source: str) -> None:
    missing = [name for name in wanted if name not in found and not name.endswith(BATCHES)]
    wrong = [
        f"{name} is {list(value.shape)}, not {list(wanted[name].shape)}"
        for name, value in found.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    surplus = [key for key, entry in account.entries.items() if entry.rule.startswith("part of a segmenter")]
    told = (("lacks", missing), ("has too much:", surplus), ("has other sizes:", wrong))
    if complaints := [f"it {verb} {some(names)}" for verb, names in told if names]:
        raise WeightsError(f"'{source}' does not fit the segmenter: {'; '.join(complaints)}")
    if broken := [name for name, value in found.items() if not bool(torch.isfinite(value).all())]:
        raise WeightsError(f"'{source}' holds numbers that are not finite (NaN or infinite): {some(broken)}")
    account.check_complete()
