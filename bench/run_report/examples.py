"""What the parts of a run make of a few images: codes, targets and predictions, similar patches, nearest images."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from mcbeit.augment import normalise
from mcbeit.bench.run_report.baselines import Features
from mcbeit.bench.run_report.trained import TrainedRun
from mcbeit.dvae import DiscreteVAE
from mcbeit.errors import DataError, ImageError
from mcbeit.image_files import COLOURS
from mcbeit.masking import draw_mask
from mcbeit.multichannel import decode_image, false_colours
from mcbeit.preprocess import Preprocess
from mcbeit.probe import Labelled, OnlineProbe
from mcbeit.sources import ImageSource
from mcbeit.targets import code_probabilities, entropy, hard_probabilities, masked_patch_ids, patch_affinity, refine
from mcbeit.tokenizer import Tokenizer, perplexity
from mcbeit.vit import VisionTransformer

Picture = UInt8[np.ndarray, "height width 3"]
Pictures = Shaped[Tensor, "image channel height width"]  # uint8 colours, or float32


class CodeUse(NamedTuple):
    """How the best codes of some images are spread, and where each code stands."""

    counts: Float[Tensor, " code"]
    perplexity: float
    surroundings: list[Picture | None]  # per code: the mean of its cells and of their eight neighbours; None if unused


class Probabilities(NamedTuple):
    """Of every code for every patch."""

    own: Float[Tensor, "image patch code"]  # p, equation (1)
    refined: Float[Tensor, "image patch code"]  # z, equation (4)
    predicted: Float[Tensor, "image patch code"]  # q


class Choice(NamedTuple):
    """One code of a masked patch, with three probabilities."""

    code: int
    own: float  # p, equation (1)
    refined: float  # z, equation (4)
    predicted: float  # q

    @property
    def largest(self) -> float:
        """The largest of the three, which bars are drawn in proportion to."""
        return max(self.own, self.refined, self.predicted)


class TargetExample(NamedTuple):
    """A masked image, and the codes of one masked patch. The three numbers of choices are exp of an entropy."""

    image: Picture
    mask: Bool[np.ndarray, "rows columns"]
    patch: int
    choices: list[Choice]
    num_choices: tuple[float, float, float]  # of p, z and q
    imagined: Picture | None  # decoded from the best codes of what is visible and the predicted ones of what is not


class SimilarityExample(NamedTuple):
    """Cosine similarity of one patch with all patches of its image, by backbone."""

    image: Picture
    patch: int
    maps: dict[str, Float[np.ndarray, "rows columns"]]


class Neighbour(NamedTuple):
    """An image of the gallery near a query."""

    image: Picture
    class_name: str
    is_right: bool


class NeighbourExample(NamedTuple):
    """A query and the nearest images of the gallery, by kind of feature."""

    image: Picture
    class_name: str
    nearest: dict[str, list[Neighbour]]


def read_views(
    source: ImageSource, indices: Int[np.ndarray, " image"], preprocesses: list[Preprocess]
) -> list[Shaped[Tensor, "readable channel _ _"]]:
    """The readable ones of some images, once per preprocessing. Raises DataError if there are none."""
    found: list[list[np.ndarray]] = []
    for index in indices:
        try:
            image = decode_image(source.read(int(index)), source.channels)
        except (ImageError, OSError):
            continue
        found.append([preprocess.pixels(image) for preprocess in preprocesses])
    if not found:
        raise DataError(f"none of {len(indices)} images such as '{source.name(int(indices[0]))}' can be read")
    return [torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2) for views in zip(*found, strict=True)]


@torch.no_grad()
def code_use(tokenizer: Tokenizer, views: Pictures) -> CodeUse:
    """Count the best codes of tokenizer views, and average what is at and around each."""
    size, vocabulary = 3 * tokenizer.stride, tokenizer.vocab_size
    channels, is_colour = views.shape[1], views.dtype == torch.uint8
    counts, sums = torch.zeros(vocabulary), torch.zeros(vocabulary, channels * size * size)
    for part in views.split(16):
        codes = tokenizer_logits(tokenizer, part).argmax(dim=-1).flatten().cpu()
        padded = F.pad(part.float(), (tokenizer.stride,) * 4, mode="replicate")
        around = F.unfold(padded, size, stride=tokenizer.stride).transpose(1, 2).flatten(0, 1)
        counts += torch.bincount(codes, minlength=vocabulary)
        sums.index_add_(0, codes, around)
    means = (sums / counts.clamp(min=1)[:, None]).view(-1, channels, size, size)
    pictures = [
        picture(mean.round().byte() if is_colour else mean) if count else None
        for mean, count in zip(means, counts, strict=True)
    ]
    return CodeUse(counts, perplexity(counts), pictures)


@torch.no_grad()
def reconstructions(tokenizer: DiscreteVAE, views: Pictures) -> list[Picture]:
    """What the codes say of tokenizer views."""
    device = next(tokenizer.parameters()).device
    return _decoded(tokenizer.reconstruct(normalise(views.to(device), tokenizer.mean, tokenizer.std)))


@torch.no_grad()
def target_examples(run: TrainedRun, tokenizer: Tokenizer, images: Pictures, views: Pictures) -> list[TargetExample]:
    """Hide patches of each image as in training, and ask for the codes of one of them.

    Of the half of the hidden patches that has more contrast it is the one with the middle number of choices.
    """
    rng = np.random.default_rng(run.config.seed)
    drawn = np.stack([draw_mask(run.config.grid, run.config.mask, rng) for _ in images])
    mask = torch.from_numpy(drawn).flatten(1)
    logits = tokenizer_logits(tokenizer, views)
    found = probabilities(run, logits, _model_input(run, images), mask.to(run.device))
    imagined: list[Picture] | list[None] = [None] * len(images)
    if isinstance(tokenizer, DiscreteVAE):
        best = torch.where(mask.to(run.device), found.predicted.argmax(dim=-1), logits.argmax(dim=-1))
        weights = F.one_hot(best, tokenizer.vocab_size).float()
        imagined = _decoded(tokenizer.decode(weights, run.config.grid))
    contrasts, choices = contrast(views, tokenizer.stride), entropy(found.own).cpu()
    examples = []
    for i, hidden in enumerate(masked_patch_ids(mask)):
        patch = int(hidden[middle(contrasts[i, hidden], choices[i, hidden])])
        rows = torch.stack([kind[i, patch] for kind in found]).cpu()
        sizes = entropy(rows).exp().tolist()
        numbers = (sizes[0], sizes[1], sizes[2])
        examples.append(TargetExample(picture(images[i]), drawn[i], patch, top_choices(rows), numbers, imagined[i]))
    return examples


def probabilities(
    run: TrainedRun,
    logits: Float[Tensor, "image patch code"],
    inputs: Float[Tensor, "image channel height width"],
    mask: Bool[Tensor, "image patch"],
) -> Probabilities:
    """Targets and predictions of all patches of masked images, as in training but in float32."""
    options = run.config.objective
    features = run.backbone.forward_tokens(inputs, mask)[:, 1:]
    taught = features if run.teacher is None else run.teacher.forward_tokens(inputs)[:, 1:]
    affinity = patch_affinity(taught, similarity_temperature=options.similarity_temperature)
    own = hard_probabilities(logits) if options.hard else code_probabilities(logits, temperature=run.temperature)
    return Probabilities(
        own=own,
        refined=refine(own, affinity, refine_weight=options.refine_weight),
        predicted=torch.softmax(run.model.lm_head(features), dim=-1),
    )


def middle(contrasts: Float[Tensor, " patch"], choices: Float[Tensor, " patch"]) -> int:
    """The patch in the middle by `choices`, among the half of them with the higher contrast."""
    sharp = contrasts.argsort(descending=True, stable=True)[: (len(contrasts) + 1) // 2]
    return int(sharp[choices[sharp].argsort(stable=True)[len(sharp) // 2]])


def top_choices(rows: Float[Tensor, "3 code"], *, num_refined: int = 5, num_predicted: int = 3) -> list[Choice]:
    """The codes that are the likeliest in the target or in the prediction, in the target's order."""
    _, refined, predicted = rows
    codes = {*refined.topk(min(num_refined, len(refined))).indices.tolist()}
    codes |= {*predicted.topk(min(num_predicted, len(predicted))).indices.tolist()}
    ordered = sorted(codes, key=lambda code: -float(refined[code]))
    return [Choice(code, *rows[:, code].tolist()) for code in ordered]


@torch.no_grad()
def similarity_examples(
    run: TrainedRun, backbones: dict[str, VisionTransformer], images: Pictures
) -> list[SimilarityExample]:
    """Compare the patch with the most contrast with all patches of its image, nothing being masked."""
    inputs, patches = _model_input(run, images), contrast(images, run.config.model.patch_size).argmax(dim=1)
    maps = {}
    for name, backbone in backbones.items():
        unit = F.normalize(backbone.to(run.device).eval().forward_tokens(inputs)[:, 1:], dim=-1).cpu()
        cosine = (unit @ unit[torch.arange(len(unit)), patches][:, :, None])[:, :, 0]
        maps[name] = cosine.unflatten(1, run.config.grid).numpy()
    return [
        SimilarityExample(picture(image), int(patches[i]), {name: found[i] for name, found in maps.items()})
        for i, image in enumerate(images)
    ]


def neighbour_examples(
    probe: OnlineProbe, features: dict[str, Features], classes: list[str], *, seed: int, num_queries: int, count: int
) -> list[NeighbourExample]:
    """The nearest images by cosine of standardised features, for one query of each of up to `num_queries` classes."""
    rng, labels = np.random.default_rng(seed), probe.queries.labels
    kinds = sorted(rng.permutation(np.unique(labels.numpy()))[:num_queries])
    chosen = [int(rng.choice((labels == kind).nonzero()[:, 0].numpy())) for kind in kinds]
    nearest = {}
    for name, found in features.items():
        similarity = F.normalize(found.queries[chosen], dim=1) @ F.normalize(found.gallery, dim=1).T
        nearest[name] = similarity.topk(min(count, len(found.gallery)), dim=1).indices.tolist()

    def neighbour(index: int, label: int) -> Neighbour:
        other = int(probe.gallery.labels[index])
        return Neighbour(image_at(probe.gallery, index), classes[other], other == label)

    return [
        NeighbourExample(
            image_at(probe.queries, query),
            classes[label],
            {name: [neighbour(index, label) for index in found[i]] for name, found in nearest.items()},
        )
        for i, (query, label) in enumerate(zip(chosen, labels[chosen].tolist(), strict=True))
    ]


def image_at(images: Labelled, index: int) -> Picture:
    """One image of a set."""
    for batch in images.pixels:
        if index < len(batch):
            return false_colours(batch[index].numpy())
        index -= len(batch)
    raise IndexError(index)


def tokenizer_logits(tokenizer: Tokenizer, views: Pictures) -> Float[Tensor, "image patch code"]:
    """Code logits of tokenizer views, in float32."""
    device = next(tokenizer.parameters()).device
    return tokenizer.code_logits(normalise(views.to(device), tokenizer.mean, tokenizer.std))


def contrast(images: Pictures, patch_size: int) -> Float[Tensor, "image patch"]:
    """The standard deviation of the pixels of every patch."""
    return F.unfold(images.float(), patch_size, stride=patch_size).std(dim=1)


def picture(image: Shaped[Tensor, "channel height width"]) -> Picture:
    """Channels last, for files; other channels than colours are stretched to be seen."""
    return false_colours(image.permute(1, 2, 0).contiguous().numpy())


def _model_input(run: TrainedRun, images: Pictures) -> Float[Tensor, "image channel height width"]:
    return normalise(images.to(run.device), run.config.preprocess.mean, run.config.preprocess.std)


def _decoded(images: Float[Tensor, "image channel height width"]) -> list[Picture]:
    is_colour = images.shape[1] == COLOURS
    shown = ((images.clamp(-1, 1) + 1) * 127.5).round().byte() if is_colour else images
    return [picture(image) for image in shown.cpu()]
