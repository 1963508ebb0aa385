"""Fewer bits where that does no harm: what measures badly keeps its 32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mcbeit.encoder import Precision
from mcbeit.errors import ExportError
from mcbeit.model_folder import EMBEDDING, INPUT
from mcbeit.onnx_encoder import open_session
from mcbeit.parity import MIN_COSINE, MIN_FOR_RECALL, MIN_RECALL, Numbers, cosine, recall
from mcbeit.quantization import quantizable, to_fp16, to_int8

NUM_GROUPS = 12  # of nodes that follow each other, measured one by one
BATCH_SIZE = 8
NUM_PROBED = 16  # images that a group is measured on
SPARED = (1, 2, 3, 4, 6)  # how many of the worst groups are left out, tried in this order
MARGIN = 0.5  # share of the allowed distance that is used, because other images than these will come


def write_precision(
    source: Path,
    target: Path,
    precision: Precision,
    wanted: Numbers,
    pixels: np.ndarray,
    tell: Callable[[str], None],
) -> list[str]:
    """Write the graph `source` in fewer bits; returns the nodes that were left out because they measured badly."""
    if precision == "fp16":
        to_fp16(source, target)
        return []
    batches = _batches(pixels)
    to_int8(source, target, left_out=[], batches=batches)
    if _is_good(target, wanted, pixels):
        return []
    groups = _groups(quantizable(source))
    tell(f"int8 for all is too far from the model; measuring {len(groups)} groups of products, one by one")
    harm = [_harm(source, target, group, groups, batches, wanted, pixels) for group in groups]
    order = [groups[i] for i in np.argsort(harm)[::-1]]
    left_out: list[str] = []
    for count in (count for count in SPARED if count < len(groups)):
        left_out = [name for group in order[:count] for name in group]
        to_int8(source, target, left_out=left_out, batches=batches)
        if _is_good(target, wanted, pixels):
            break
    return left_out


def _batches(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]


def _groups(nodes: list[str]) -> list[list[str]]:
    parts = np.array_split(np.arange(len(nodes)), min(NUM_GROUPS, len(nodes)))
    return [[nodes[i] for i in part] for part in parts]


def _harm(
    source: Path,
    target: Path,
    group: list[str],
    groups: list[list[str]],
    batches: list[np.ndarray],
    wanted: Numbers,
    pixels: np.ndarray,
) -> float:
    """How far the embeddings move if only this group has 8 bits."""
    others = [name for other in groups if other is not group for name in other]
    to_int8(source, target, left_out=others, batches=batches[:2])
    return 1.0 - float(cosine(wanted.embeddings[:NUM_PROBED], _embeddings(target, pixels[:NUM_PROBED])).min())


def _is_good(path: Path, wanted: Numbers, pixels: np.ndarray) -> bool:
    """Whether the demands on int8 are met, those on the cosine with a margin."""
    found = _embeddings(path, pixels)
    distance = 1.0 - float(cosine(wanted.embeddings, found).min())
    keeps_order = len(found) < MIN_FOR_RECALL or recall(wanted.embeddings, found) >= MIN_RECALL["int8"]
    return distance <= MARGIN * (1.0 - MIN_COSINE["int8"]) and keeps_order


def _embeddings(path: Path, pixels: np.ndarray) -> np.ndarray:
    session = open_session(path, provider="cpu")
    found = np.concatenate([session.run([EMBEDDING], {INPUT: batch})[0] for batch in _batches(pixels)])
    if not np.isfinite(found).all():
        raise ExportError(f"{path.name} gives numbers that are not finite")
    return found
