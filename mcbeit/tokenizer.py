"""The image tokenizer: one protocol for everything that turns each patch into logits over a visual vocabulary."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcbeit.preprocess import Interpolation

CHUNK = 1 << 22  # distances that are held at once where codes are compared with each other
Normalisation = tuple[float, ...]


class Tokenizer(nn.Module, ABC):
    """A frozen discretiser. One code per cell of `stride` x `stride` pixels, cells in row-major order.

    `mean`, `std` and `interpolation` are how it wants its view of an image.
    """

    vocab_size: int
    stride: int
    image_size: int | None = None  # pixels; None: any multiple of the stride
    mean: Normalisation = (0.5, 0.5, 0.5)  # of pixels in [0, 1], per channel
    std: Normalisation = (0.5, 0.5, 0.5)
    interpolation: Interpolation = "lanczos"
    default_temperature: float = 1.0  # of equation (1), where nothing better is known

    @property
    def channels(self) -> int:
        """The number of channels that it takes."""
        return len(self.mean)

    @abstractmethod
    def code_logits(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch patch code"]:
        """Unnormalised log-probabilities of every code for every patch, given normalised pixels."""

    def view_size(self, grid: tuple[int, int]) -> int:
        """The pixels per side that give this square grid of codes; raises ValueError if none does."""
        size = grid[0] * self.stride
        if grid[0] != grid[1] or (self.image_size is not None and size != self.image_size):
            raise ValueError(
                f"the tokenizer gives one code per {self.stride} pixels"
                + (f" of images of {self.image_size} pixels" if self.image_size else "")
                + f", which does not fit a patch grid of {grid[0]} x {grid[1]}"
            )
        return size

    def frozen(self) -> "Tokenizer":
        """This tokenizer in evaluation mode, without gradients."""
        return self.eval().requires_grad_(False)


def flatten_cells(logits: Float[Tensor, "batch code height width"]) -> Float[Tensor, "batch patch code"]:
    """Row-major cells; a view without copy if the input is in channels_last memory format."""
    return logits.permute(0, 2, 3, 1).flatten(1, 2)


def distance_logits(
    vectors: Float[Tensor, "batch patch dim"], codebook: Float[Tensor, "code dim"]
) -> Float[Tensor, "batch patch code"]:
    """Minus the squared distances to the codes, so that the nearest code has the largest logit; at least float32."""
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    vectors, codebook = vectors.to(dtype), codebook.to(dtype)
    return 2 * (vectors @ codebook.T) - vectors.square().sum(-1, keepdim=True) - codebook.square().sum(-1)


@torch.no_grad()
def code_gap(codebook: Float[Tensor, "code dim"]) -> float:
    """The median squared distance of a code to its nearest other code: a temperature for `distance_logits`.

    With it a patch that is one code has about 1/e as much of that code's neighbour. 1 if all codes are alike.
    """
    gaps = []
    for start in range(0, len(codebook), max(CHUNK // len(codebook), 1)):
        part = codebook[start : start + max(CHUNK // len(codebook), 1)]
        squared = -distance_logits(part[None], codebook)[0]
        squared[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        gaps.append(squared.amin(dim=1))
    gap = float(torch.cat(gaps).clamp(min=0).median())
    return gap if 0 < gap < float("inf") else 1.0


def count_codes(logits: Float[Tensor, "batch patch code"]) -> Float[Tensor, " code"]:
    """How often each code is the best one. Not by `bincount`, which makes the host wait for a GPU."""
    best = logits.argmax(dim=-1).flatten()
    counts = torch.zeros(logits.shape[-1], device=logits.device)
    return counts.index_add_(0, best, torch.ones_like(best, dtype=counts.dtype))


def perplexity(counts: Float[Tensor, " code"]) -> float:
    """exp of the entropy of code use: how many codes are in effect used, between 1 and the vocabulary's size."""
    share = counts / counts.sum().clamp(min=1)
    return float(torch.special.entr(share).sum().exp())
