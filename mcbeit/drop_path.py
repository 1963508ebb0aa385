"""Stochastic depth whose choices are part of the data: the same for any number of workers, and after any restart."""

from collections.abc import Iterable

from jaxtyping import Float
from timm.layers.drop import DropPath
from torch import Tensor, nn


class DiceDropPath(nn.Module):
    """Leaves a residual branch out for some rows of the batch, and scales it up for the others.

    `dice` holds a number in [0, 1) per row; a row whose number is below `rate` is left out. Outside training, or at
    rate 0, it does nothing.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.dice: Tensor | None = None

    def forward(self, branch: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *axes"]:
        if self.rate == 0 or not self.training:
            return branch
        if self.dice is None:
            raise RuntimeError("drop path needs dice in training; give them to forward_tokens")
        kept = (self.dice >= self.rate).to(branch.dtype) / (1 - self.rate)
        return branch * kept.view(-1, *[1] * (branch.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def use_dice(blocks: Iterable[nn.Module]) -> None:
    """Replace timm's drop paths, which draw from the global generator."""
    for block in blocks:
        for name, child in block.named_children():
            if isinstance(child, DropPath):
                setattr(block, name, DiceDropPath(child.drop_prob))


def throw(blocks: Iterable[nn.Module], dice: Float[Tensor, "batch two_per_block"] | None) -> None:
    """Give each block the dice of its two branches."""
    for i, block in enumerate(blocks):
        for column, path in enumerate((block.drop_path1, block.drop_path2)):
            if isinstance(path, DiceDropPath):
                path.dice = None if dice is None else dice[:, 2 * i + column]
