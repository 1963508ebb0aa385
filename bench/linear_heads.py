"""Many linear classifiers on the same frozen features, which differ in what they see and in their learning rate.

They share nothing but the batches and the statistics of their inputs: each ends as it would alone. `head_training.py`
trains them.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mcbeit.errors import BenchError

EPSILON = 1e-6  # of the batch norm, as MAE has it
TOP = 5

Batch = tuple[Tensor, Tensor]  # features [batch, column, dim], labels [batch]


class HeadSpec(NamedTuple):
    """One classifier: the columns of the features that it sees, concatenated, and its learning rate at the peak."""

    name: str
    columns: tuple[int, ...]
    lr: float


class HeadAnswers(NamedTuple):
    """What each head makes of each image."""

    predicted: Int64[np.ndarray, "head image"]
    top1: Bool[np.ndarray, "head image"]  # whether that is the true class
    top5: Bool[np.ndarray, "head image"]  # whether the true class is among the five with the largest logits


class LinearHeads(nn.Module):
    """Linear classifiers. Those that see the same columns start alike, so that their learning rates are compared."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        dim: int,
        num_classes: int,
        *,
        init_std: float = 0.01,
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        """`dim` is that of one column; `batch_norm` standardises inputs, by the batch while training.

        Raises BenchError if there is no head, if two have the same name, and if a head sees no column.
        """
        super().__init__()
        _check(specs)
        self.specs, self.num_classes = tuple(specs), num_classes
        self.inputs = tuple(dict.fromkeys(spec.columns for spec in specs))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(dim * len(columns), eps=EPSILON, affine=False) if batch_norm else nn.Identity()
            for columns in self.inputs
        )
        self.heads = nn.ModuleList(_linear(dim * len(spec.columns), num_classes, init_std, seed) for spec in specs)

    def forward(self, features: Float[Tensor, "batch column dim"]) -> Float[Tensor, "head batch class"]:
        """The logits of all heads."""
        seen = {
            columns: norm(features[:, list(columns)].flatten(1))
            for columns, norm in zip(self.inputs, self.norms, strict=True)
        }
        return torch.stack([head(seen[spec.columns]) for spec, head in zip(self.specs, self.heads, strict=True)])

    def losses(
        self, features: Float[Tensor, "batch column dim"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, " head"]:
        """The mean cross-entropy of each head. Their sum has the gradients of all of them."""
        return torch.stack([F.cross_entropy(logits, labels) for logits in self(features)])

    def place(self, batch: Batch) -> Batch:
        """Bring a batch to where the heads are, in their number format."""
        features, labels = batch
        weight = next(self.parameters())
        return features.to(weight), labels.to(weight.device)


def _check(specs: Sequence[HeadSpec]) -> None:
    if not specs:
        raise BenchError("there is no linear head to train")
    names = [spec.name for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BenchError(f"two linear heads are called '{twice[0]}'")
    if blind := [spec.name for spec in specs if not spec.columns]:
        raise BenchError(f"the linear head '{blind[0]}' sees no column of the features")


def _linear(width: int, num_classes: int, init_std: float, seed: int) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, width, num_classes)  # it would draw from the global generator
    nn.init.normal_(linear.weight, std=init_std, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return linear


@torch.no_grad()
def evaluate_heads(heads: LinearHeads, batches: Iterable[Batch]) -> HeadAnswers:
    """Classify batches of images by every head."""
    was_training = heads.training
    heads.eval()
    best, truth = [], []
    for batch in batches:
        features, labels = heads.place(batch)
        best.append(heads(features).topk(min(TOP, heads.num_classes), dim=2).indices.cpu())
        truth.append(labels.cpu())
    heads.train(was_training)
    guesses = torch.cat(best, dim=1)
    is_right = guesses == torch.cat(truth)[:, None]
    return HeadAnswers(guesses[..., 0].numpy(), is_right[..., 0].numpy(), is_right.any(dim=2).numpy())
