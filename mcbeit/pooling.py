"""From the tokens of an image to one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mcbeit.encoder import Pooling

GEM_POWER = 3.0  # Radenovic et al., 2018
GEM_FLOOR = 1e-6  # tokens are clamped to it: the power is of positive numbers


def pool(
    kind: Pooling,
    patches: Float[Tensor, "batch height width dim"],
    cls: Float[Tensor, "batch dim"] | None,
    norm: Callable[[Tensor], Tensor],
) -> Float[Tensor, "batch pooled"]:
    """mean: of the patch tokens. cls: the cls token. cls+mean: both, one after the other. gem: generalised mean.

    `norm` is applied to each. Raises ValueError if there is no cls token to take; head is the model's own affair.
    """
    if kind == "gem":
        powers = patches.clamp(min=GEM_FLOOR).pow(GEM_POWER)
        return norm(powers.mean(dim=(1, 2)).pow(1 / GEM_POWER))
    if kind == "mean":
        return norm(patches.mean(dim=(1, 2)))
    if cls is None or kind == "head":
        raise ValueError(f"pooling={kind} needs a cls token")
    return norm(cls) if kind == "cls" else torch.cat([norm(cls), norm(patches.mean(dim=(1, 2)))], dim=1)
