"""Our own small tokenizer: a convolutional discrete variational autoencoder (Ramesh et al., 2021), any stride."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.tokenizer import Tokenizer, flatten_cells


class DiscreteVAEConfig(Config):
    """The size of the autoencoder."""

    stride: int = Field(8, ge=1)  # pixels per code and side
    vocab_size: int = Field(512, ge=2)
    dim: int = Field(128, ge=1)  # width at the stride; half of it before
    num_blocks: int = Field(1, ge=0)  # residual blocks at the stride, on each side
    mean: tuple[float, ...] = Field((0.5, 0.5, 0.5), min_length=1)  # of pixels in [0, 1], a number per channel
    std: tuple[PositiveFloat, ...] = Field((0.5, 0.5, 0.5), min_length=1)

    @model_validator(mode="after")
    def _numbers_per_channel(self) -> "DiscreteVAEConfig":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need a number per channel each, found {len(self.mean)} and {len(self.std)}")
        return self


class DiscreteVAE(Tokenizer):
    """Encoder to code logits, codebook, decoder to pixels; input and output normalised, colours to [-1, 1]."""

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.stride = config.vocab_size, config.stride
        self.mean, self.std = config.mean, config.std
        factors = list(_prime_factors(config.stride)) or [1]
        half = max(config.dim // 2, 1)
        widths = [self.channels, *[half] * (len(factors) - 1), config.dim]
        self.encoder = nn.Sequential(
            *(_Down(a, b, factor) for a, b, factor in zip(widths, widths[1:], factors, strict=False)),
            *(_Residual(config.dim) for _ in range(config.num_blocks)),
            nn.Conv2d(config.dim, config.dim, 3, padding=1),
            nn.GELU(),
        )
        self.to_logits = nn.Conv2d(config.dim, config.vocab_size, 1)
        self.codebook = nn.Parameter(torch.randn(config.vocab_size, config.dim) * config.dim**-0.5)
        stages = reversed(list(zip(widths, widths[1:], factors, strict=False)))
        self.decoder = nn.Sequential(
            nn.Conv2d(config.dim, config.dim, 3, padding=1),
            nn.GELU(),
            *(_Residual(config.dim) for _ in range(config.num_blocks)),
            *(_Up(b, a, factor) for a, b, factor in stages),
        )

    def code_logits(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch patch code"]:
        """Logits of the codes; the temperature that suits them is found by calibration."""
        return flatten_cells(self.to_logits(self.encoder(images)))

    def decode(
        self, weights: Float[Tensor, "batch patch code"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch channel height width"]:
        """Pixels from a (soft or one-hot) choice of codes per patch."""
        cells = (weights @ self.codebook.to(weights.dtype)).transpose(1, 2).unflatten(2, grid)
        return self.decoder(cells)

    def reconstruct(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """What is left of images when each patch is its best code."""
        logits = self.code_logits(images)
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        return self.decode(F.one_hot(logits.argmax(dim=-1), self.vocab_size).to(images.dtype), grid)

    @torch.no_grad()
    def revive(self, dead: Int[Tensor, " code"], donors: Int[Tensor, " code"], generator: torch.Generator) -> None:
        """Make each dead code a slightly different copy of a donor, so that the two share its patches."""
        for table in (self.to_logits.weight, self.codebook):
            copy = table[donors]
            noise = torch.randn(copy.shape, generator=generator).to(copy)
            table[dead] = copy + 0.1 * copy.std() * noise
        bias = self.to_logits.bias
        assert bias is not None
        bias[dead] = bias[donors]


class _Down(nn.Sequential):
    """Shrink by an integer factor, each output cell seeing a little of its neighbours."""

    def __init__(self, in_dim: int, dim: int, factor: int) -> None:
        pad = (factor + 1) // 2
        super().__init__(nn.Conv2d(in_dim, dim, factor + 2 * pad, stride=factor, padding=pad), nn.GELU())


class _Up(nn.Sequential):
    """Activate, then grow by an integer factor, neighbours overlapping."""

    def __init__(self, in_dim: int, dim: int, factor: int) -> None:
        pad = (factor + 1) // 2
        super().__init__(nn.GELU(), nn.ConvTranspose2d(in_dim, dim, factor + 2 * pad, stride=factor, padding=pad))


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, dim),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _prime_factors(number: int) -> Iterator[int]:
    """The prime factors, largest first, so that odd strides shrink early."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    yield from reversed(factors)
