"""The encoder of OpenAI's discrete VAE (Ramesh et al., 2021), the tokenizer of BEiT.

Module names follow `encoder.pkl`. The default sizes are the published ones: stride 8, 8192 codes, 53.8 M parameters.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.tokenizer import Tokenizer, flatten_cells

NUM_GROUPS = 4


class DallEConfig(Config):
    """The size of the encoder; the defaults are the published model's."""

    vocab_size: int = Field(8192, ge=2)
    dim: int = Field(256, ge=4)  # width of the first group; then twice, four and eight times of it
    num_blocks: int = Field(2, ge=1)  # per group


class DallE(Tokenizer):
    """Groups of residual blocks with a max pooling between each two. Its view is 0.8 x + 0.1 of pixels x in [0, 1]."""

    stride = 2 ** (NUM_GROUPS - 1)
    mean = (-0.125, -0.125, -0.125)  # (x + 0.125) / 1.25 = 0.8 x + 0.1, the logit-Laplace mapping
    std = (1.25, 1.25, 1.25)

    def __init__(self, config: DallEConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        widths = [config.dim * multiplier for multiplier in (1, 1, 2, 4, 8)]
        gain = (NUM_GROUPS * config.num_blocks) ** -2.0
        groups = {
            f"group_{i + 1}": Group(widths[i], widths[i + 1], config.num_blocks, gain=gain, pools=i < NUM_GROUPS - 1)
            for i in range(NUM_GROUPS)
        }
        output = nn.ModuleDict({"conv": OddConv(widths[-1], config.vocab_size, 1)})
        self.blocks = nn.ModuleDict({"input": OddConv(3, config.dim, 7), **groups, "output": output})

    def code_logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch code"]:
        """The output of the last convolution."""
        *body, output = self.blocks.values()
        for part in body:
            images = part(images)
        assert isinstance(output, nn.ModuleDict)
        return flatten_cells(output["conv"](F.relu(images)))


class OddConv(nn.Module):
    """A convolution whose odd kernel is padded alike on all sides, with the published parameter names."""

    def __init__(self, in_dim: int, dim: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(dim, in_dim, size, size) * (in_dim * size**2) ** -0.5)
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class Group(nn.Module):
    """Blocks at one resolution, then a max pooling unless it is the last."""

    def __init__(self, in_dim: int, dim: int, num_blocks: int, *, gain: float, pools: bool) -> None:
        super().__init__()
        self.pools = pools
        for i in range(num_blocks):
            self.add_module(f"block_{i + 1}", Block(in_dim if i == 0 else dim, dim, gain=gain))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return F.max_pool2d(x, 2) if self.pools else x


class Block(nn.Module):
    """A bottleneck of four convolutions, scaled by the gain, beside the identity (1x1 where the width changes)."""

    def __init__(self, in_dim: int, dim: int, *, gain: float) -> None:
        super().__init__()
        self.gain, inner = gain, dim // 4
        self.id_path = nn.Identity() if in_dim == dim else OddConv(in_dim, dim, 1)
        convolutions = (OddConv(in_dim, inner, 3), OddConv(inner, inner, 3), OddConv(inner, inner, 3))
        named = {f"conv_{i + 1}": layer for i, layer in enumerate((*convolutions, OddConv(inner, dim, 1)))}
        self.res_path = nn.ModuleDict(named)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.res_path.values():
            hidden = layer(F.relu(hidden))
        return self.id_path(x) + self.gain * hidden
