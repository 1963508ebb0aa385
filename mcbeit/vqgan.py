"""The encoders of VQGAN (Esser et al., 2021): Gumbel, the tokenizer of the published mc-BEiT runs, and nearest-code.

Module names follow the public checkpoints (`encoder.*`, `quant_conv.*`, `quantize.*`); the decoder is not needed.
The default sizes are those of the public model with stride 8 and 8192 codes (26.3 M parameters up to `quant_conv`).
"""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.tokenizer import Tokenizer, distance_logits, flatten_cells


class GumbelVQGANConfig(Config):
    """The size of an encoder of VQGAN, Gumbel or not; the defaults are the public Gumbel model's."""

    vocab_size: int = Field(8192, ge=2)
    embed_dim: int = Field(256, ge=1)
    dim: int = Field(128, ge=32, multiple_of=32)  # width of the first level; group norms have 32 groups
    # of the width, per level; the stride is 2^(levels - 1)
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 4), min_length=1)
    num_blocks: int = Field(2, ge=1)


class GumbelVQGAN(Tokenizer):
    """Encoder, `quant_conv` and the projection to code logits; input normalised to [-1, 1]."""

    default_temperature = 4.0

    def __init__(self, config: GumbelVQGANConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.stride = 2 ** (len(config.multipliers) - 1)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.quantize = nn.ModuleDict({"proj": nn.Conv2d(config.embed_dim, config.vocab_size, 1)})

    def code_logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch code"]:
        """The raw output of the projection: no Gumbel noise, no argmax."""
        return flatten_cells(self.quantize["proj"](self.quant_conv(self.encoder(images))))


class NearestVQGAN(Tokenizer):
    """Encoder, `quant_conv` and a codebook, of VQGANs that take the nearest code (EMA-VQ, VQ); input in [-1, 1].

    The official mc-BEiT code has the sign of these logits wrong and so prefers the farthest code. Their scale is the
    codebook's, and so is the default temperature of trained ones.
    """

    def __init__(self, config: GumbelVQGANConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.stride = 2 ** (len(config.multipliers) - 1)
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 1)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.vocab_size, config.embed_dim)})

    def code_logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch code"]:
        """Minus the squared distance to each code."""
        vectors = flatten_cells(self.quant_conv(self.encoder(images)))
        return distance_logits(vectors, self.quantize.get_parameter("embedding.weight"))


class Encoder(nn.Module):
    """Levels of residual blocks with a downsampling between each two, attention on the last level, a middle part."""

    def __init__(self, config: GumbelVQGANConfig) -> None:
        super().__init__()
        width = config.dim
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            is_last = level == len(config.multipliers) - 1
            self.down.append(Level(width, config.dim * multiplier, num_blocks=config.num_blocks, is_last=is_last))
            width = config.dim * multiplier
        self.mid = nn.ModuleDict(
            {"block_1": ResBlock(width, width), "attn_1": AttnBlock(width), "block_2": ResBlock(width, width)}
        )
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, config.embed_dim, 3, padding=1)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        for part in self.mid.values():
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention on the last level, then a downsampling elsewhere."""

    def __init__(self, in_dim: int, dim: int, *, num_blocks: int, is_last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(in_dim if i == 0 else dim, dim) for i in range(num_blocks))
        self.attn = nn.ModuleList(AttnBlock(dim) for _ in range(num_blocks if is_last else 0))
        self.downsample = None if is_last else Downsample(dim)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x if self.downsample is None else self.downsample(x)


class Downsample(nn.Module):
    """A strided convolution padded right and bottom only: symmetric padding would shift the codes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice, plus a shortcut (1x1 where the width changes)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(in_dim), nn.Conv2d(in_dim, dim, 3, padding=1)
        self.norm2, self.conv2 = _norm(dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class AttnBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = _norm(dim)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


def _norm(dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, dim, eps=1e-6)
