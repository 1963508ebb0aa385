"""How good frozen features are: embed labelled images, then ask nearest neighbours and a linear classifier."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcbeit.config import Config, UserPath
from mcbeit.data import DataConfig, auto_workers, open_loader
from mcbeit.device import Precision
from mcbeit.errors import DataError, ImageError
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource, Labels, SourceKind, open_source
from mcbeit.vit import VisionTransformer

RECALL_COUNTS = (1, 5, 10)
EVAL_BATCH = 250


class EvalConfig(Config):
    """The k-NN probe during training. It needs labels, which the training itself never sees."""

    every_epochs: float | None = Field(None, gt=0)  # None: never
    gallery: UserPath | None = None  # an ImageFolder or list file; None: data.source, if it has labels
    queries: UserPath | None = None  # held-out images; None: images of the gallery that are left out of it
    kind: SourceKind = "auto"  # a folder is then an ImageFolder, a file a list
    num_gallery: int = Field(10000, ge=2)  # at most
    num_queries: int = Field(2000, ge=1)  # at most; all of them stay in memory: 150 kB each at 224 px

    @property
    def names_labels(self) -> bool:
        """Whether a run is told where labels are, for itself or for its report; else only its images may have some."""
        return (self.every_epochs, self.gallery, self.queries) != (None, None, None)


class Labelled(NamedTuple):
    """Preprocessed images of a source with their labels, unreadable ones left out."""

    pixels: list[Tensor]  # batches, [image, height, width, channel], uint8 colours or float32
    labels: Int[Tensor, " image"]
    num_skipped: int


class _Pixels(Dataset[Tensor | None]):
    def __init__(self, source: ImageSource, indices: Int[np.ndarray, " image"], preprocess: Preprocess) -> None:
        self.source, self.indices, self.preprocess = source, indices, preprocess

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Tensor | None:
        try:
            return torch.from_numpy(self.preprocess.pixels(self.source.read(int(self.indices[position]))))
        except (ImageError, OSError):
            return None


def pick(source: ImageSource, limit: int | None, seed: int) -> Int[np.ndarray, " image"]:
    """All images, or `limit` of them drawn without replacement, in ascending order."""
    if limit is None or limit >= len(source):
        return np.arange(len(source))
    return np.sort(np.random.default_rng(seed).choice(len(source), size=limit, replace=False))


def require_labels(source: ImageSource) -> Labels:
    """The labels of a source. Raises DataError if it has none."""
    if source.labels is None:
        raise DataError(
            f"a probe needs labels, but images such as '{source.name(0)}' have none; name an ImageFolder or list file "
            "with labels as eval.gallery"
        )
    return source.labels


def pixel_loader(
    source: ImageSource,
    indices: Int[np.ndarray, " image"],
    preprocess: Preprocess,
    *,
    num_workers: int,
    batch_size: int = EVAL_BATCH,
) -> DataLoader[Tensor | None]:
    """Some images in order, in lists of up to `batch_size`; each [height, width, channel], None if it is unreadable."""
    return open_loader(
        _Pixels(source, indices, preprocess),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )


def load_labelled(
    source: ImageSource, indices: Int[np.ndarray, " image"], preprocess: Preprocess, *, num_workers: int
) -> Labelled:
    """Decode and preprocess some images of a labelled source. Raises DataError without labels or readable images."""
    labels = require_labels(source)
    batches, kept = [], []
    for batch in pixel_loader(source, indices, preprocess, num_workers=num_workers):
        kept += [image is not None for image in batch]
        if readable := [image for image in batch if image is not None]:
            batches.append(torch.stack(readable))
    if not batches:
        raise DataError(f"none of the {len(indices)} images for a probe, such as '{source.name(0)}', can be read")
    keep = np.array(kept, dtype=bool)
    return Labelled(batches, torch.from_numpy(labels[indices][keep]), int((~keep).sum()))


def open_labelled(location: str | list[str], kind: SourceKind, channels: int) -> ImageSource:
    """A source with labels; `auto` takes a folder as an ImageFolder. Raises DataError if it has none."""
    source = open_source(location, kind, folders="imagefolder", channels=channels)
    require_labels(source)
    return source


def _occurring(source: ImageSource) -> set[str]:
    return {source.classes[label] for label in np.unique(require_labels(source))}


class OnlineProbe:
    """Labelled images on which a backbone is judged again and again while it trains; decoded at the first time."""

    def __init__(self, config: EvalConfig, data: DataConfig, preprocess: Preprocess, seed: int) -> None:
        """Raises DataError before any training if the labels are not there."""
        gallery = open_labelled(config.gallery or data.required_source(), config.kind, data.channels)
        chosen = pick(gallery, config.num_gallery, seed)
        if len(chosen) < 2:
            raise DataError(f"a probe needs at least 2 images, but '{gallery.name(0)}' is alone in its gallery")
        if config.queries is not None:
            queries = open_labelled(config.queries, config.kind, data.channels)
            asked = pick(queries, config.num_queries, seed)
            if unknown := sorted(_occurring(queries) - _occurring(gallery)):
                raise DataError(
                    f"eval.queries='{config.queries}' has classes that the gallery has not, such as '{unknown[0]}'"
                )
        else:
            queries, cut = gallery, max(1, min(config.num_queries, len(chosen) // 5))
            order = np.random.default_rng(seed).permutation(chosen)
            asked, chosen = np.sort(order[:cut]), np.sort(order[cut:])
        self.asked_of = "held-out images" if config.queries else "training images that are left out of the gallery"
        self.preprocess, self._workers = preprocess, auto_workers(data)
        self._gallery, self._queries = (gallery, chosen), (queries, asked)
        number = {name: i for i, name in enumerate(gallery.classes)}
        self._numbers = torch.tensor([number.get(name, -1) for name in queries.classes])  # of the gallery's classes

    @cached_property
    def gallery(self) -> Labelled:
        """What the neighbours are taken from."""
        return load_labelled(*self._gallery, self.preprocess, num_workers=self._workers)

    @cached_property
    def queries(self) -> Labelled:
        """The held-out images, their classes numbered as the gallery's."""
        found = load_labelled(*self._queries, self.preprocess, num_workers=self._workers)
        return found._replace(labels=self._numbers[found.labels])

    @property
    def num_skipped(self) -> int:
        """Unreadable images among those asked for."""
        return self.gallery.num_skipped + self.queries.num_skipped

    def knn(self, backbone: VisionTransformer, precision: Precision) -> float:
        """Top-1 accuracy of the 20 nearest neighbours on standardised mean-pooled features."""
        gallery, queries = standardise(
            *(mean_pooled(backbone, s.pixels, self.preprocess, precision) for s in (self.gallery, self.queries))
        )
        return knn_accuracy(gallery, self.gallery.labels, queries, self.queries.labels)


@torch.no_grad()
def mean_pooled(
    backbone: VisionTransformer, images: list[Tensor], preprocess: Preprocess, precision: Precision
) -> Float[Tensor, "image dim"]:
    """The mean of the patch tokens, after or before the final norm, as the backbone has it."""
    device = backbone.cls_token.device
    was_training = backbone.training
    backbone.eval()
    pooled = []
    for pixels in images:
        inputs = torch.from_numpy(preprocess.normalise(pixels.numpy())).permute(0, 3, 1, 2).to(device)
        with precision.autocast(device):
            pooled.append(backbone.pooled(backbone.forward_tokens(inputs)))
    backbone.train(was_training)
    return torch.cat(pooled)


def standardise(
    gallery: Float[Tensor, "image dim"], queries: Float[Tensor, "query dim"]
) -> tuple[Float[Tensor, "image dim"], Float[Tensor, "query dim"]]:
    """Both sets with the gallery's mean and deviation per feature taken out."""
    mean, deviation = gallery.mean(dim=0), gallery.std(dim=0).clamp(min=1e-6)
    return (gallery - mean) / deviation, (queries - mean) / deviation


def knn_accuracy(
    gallery: Float[Tensor, "image dim"],
    gallery_labels: Int[Tensor, " image"],
    queries: Float[Tensor, "query dim"],
    query_labels: Int[Tensor, " query"],
    *,
    num_neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of the weighted vote of the nearest neighbours by cosine (Wu et al., 2018)."""
    gallery, queries = F.normalize(gallery, dim=1), F.normalize(queries, dim=1)
    labels, hits = gallery_labels.to(gallery.device), 0
    num_classes = int(labels.max()) + 1
    for part, truth in zip(queries.split(1000), query_labels.to(gallery.device).split(1000), strict=True):
        similarity, nearest = (part @ gallery.T).topk(min(num_neighbours, len(gallery)), dim=1)
        votes = torch.zeros(len(part), num_classes, device=gallery.device)
        votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        hits += int((votes.argmax(dim=1) == truth).sum())
    return hits / len(queries)


def recall_at(
    gallery: Float[Tensor, "image dim"],
    gallery_labels: Int[Tensor, " image"],
    queries: Float[Tensor, "query dim"],
    query_labels: Int[Tensor, " query"],
    *,
    counts: Sequence[int] = RECALL_COUNTS,
) -> list[float]:
    """For each k of `counts` the share of queries with an image of their class among the k nearest by cosine."""
    gallery, queries = F.normalize(gallery, dim=1), F.normalize(queries, dim=1)
    labels, hits = gallery_labels.to(gallery.device), torch.zeros(len(counts), device=gallery.device)
    for part, truth in zip(queries.split(1000), query_labels.to(gallery.device).split(1000), strict=True):
        nearest = (part @ gallery.T).topk(min(max(counts), len(gallery)), dim=1).indices
        found = labels[nearest] == truth[:, None]
        hits += torch.stack([found[:, :count].any(dim=1).sum() for count in counts])
    return [float(hit) / len(queries) for hit in hits]


def linear_accuracy(
    train: Float[Tensor, "image dim"],
    train_labels: Int[Tensor, " image"],
    queries: Float[Tensor, "query dim"],
    query_labels: Int[Tensor, " query"],
    *,
    iterations: int = 60,
    weight_decay: float = 1e-4,
) -> float:
    """Top-1 accuracy of multinomial logistic regression on fixed features, fitted to the whole set by L-BFGS."""
    labels = train_labels.to(train.device)
    weight = torch.zeros(int(labels.max()) + 1, train.shape[1] + 1, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe")
    ones = F.pad(train, (0, 1), value=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(ones @ weight.T, labels) + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    guess = (F.pad(queries, (0, 1), value=1.0) @ weight.detach().T).argmax(dim=1)
    return float((guess == query_labels.to(guess.device)).float().mean())
