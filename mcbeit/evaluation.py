"""How often a classifier is right, over all workers, each image counted once."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mcbeit.classifier import Classifier
from mcbeit.device import Precision
from mcbeit.errors import DataError
from mcbeit.finetune_data import Judged
from mcbeit.group import Group
from mcbeit.preprocess import Preprocess
from mcbeit.probe import pixel_loader

UNREADABLE = -1
TOP_K = 5


class Judgement(NamedTuple):
    """What a classifier has said of some images; those that cannot be read are in no mean."""

    predicted: Int64[np.ndarray, " image"]  # the best class, UNREADABLE where there is none
    top1: float
    top5: float | None  # None: there are no more than 5 classes
    loss: float  # cross-entropy in nats

    @property
    def num_unreadable(self) -> int:
        """Images that could not be read."""
        return int((self.predicted == UNREADABLE).sum())

    def numbers(self) -> dict[str, float]:
        """What is told of it."""
        found = {"top1": self.top1, "loss": self.loss}
        return found if self.top5 is None else {**found, "top5": self.top5}


def judge(
    model: Classifier,
    images: Judged,
    preprocess: Preprocess,
    precision: Precision,
    *,
    group: Group,
    num_workers: int,
    batch_size: int,
) -> Judgement:
    """Ask a model about images, each worker about its part of them; all workers learn all of it.

    Raises DataError if none of the images can be read.
    """
    mine = np.arange(len(images.source))[group.rank :: group.size]
    batches = pixel_loader(images.source, mine, preprocess, num_workers=num_workers, batch_size=batch_size)
    rows = np.full((len(images.source), 3), np.nan)  # best class, whether the true one is among the best, loss
    for rank, part in enumerate(group.gather(_ask(model, batches, images.labels[mine], preprocess, precision))):
        rows[rank :: group.size] = part
    is_read = ~np.isnan(rows[:, 0])
    if not is_read.any():
        raise DataError(f"none of the {len(rows)} images to judge by, such as '{images.source.name(0)}', can be read")
    predicted = np.where(is_read, rows[:, 0], UNREADABLE).astype(np.int64)
    _, is_near, loss = rows[is_read].T
    has_more = model.head.out_features > TOP_K
    return Judgement(
        predicted,
        top1=float((predicted == images.labels)[is_read].mean()),
        top5=float(is_near.mean()) if has_more else None,
        loss=float(loss.mean()),
    )


@torch.no_grad()
def _ask(
    model: Classifier,
    batches: Iterable[list[Tensor | None]],
    labels: Int64[np.ndarray, " asked"],
    preprocess: Preprocess,
    precision: Precision,
) -> Float[np.ndarray, "asked 3"]:
    device, was_training = model.head.weight.device, model.training
    model.eval()
    rows, start = np.full((len(labels), 3), np.nan), 0
    for batch in batches:
        read = [i for i, pixels in enumerate(batch, start=start) if pixels is not None]
        start += len(batch)
        if read:
            pixels = torch.stack([one for one in batch if one is not None])
            inputs = torch.from_numpy(preprocess.normalise(pixels.numpy())).permute(0, 3, 1, 2).to(device)
            with precision.autocast(device):
                scores = model(inputs)
            rows[read] = _rows(scores, torch.from_numpy(labels[read]).to(device)).cpu().numpy()
    model.train(was_training)
    return rows


def _rows(scores: Float[Tensor, "image class"], labels: Int64[Tensor, " image"]) -> Float[Tensor, "image 3"]:
    nearest = scores.topk(min(TOP_K, scores.shape[1]), dim=1).indices
    is_near = (nearest == labels[:, None]).any(dim=1)
    loss = F.cross_entropy(scores, labels, reduction="none")
    return torch.stack([scores.argmax(dim=1).float(), is_near.float(), loss], dim=1)
