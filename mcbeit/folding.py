"""A BEiT as the exported graph has it: the same function with less to compute.

Layer scale is in the weights that it scales, the scale of the scores and the biases of queries and values are in one
product, a bias table is the constant that it makes, the same one in all blocks if the table is shared.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.beit import Beit
from torch import Tensor, nn

from mcbeit.bodies import BeitBody, Tokens


class FoldedBlock(nn.Module):
    """One block of a BEiT."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.num_heads = int(attention.num_heads)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = _folded_qkv(attention)
        self.proj = _scaled(attention.proj, block.gamma_1)
        self.mlp = copy.deepcopy(block.mlp)
        self.mlp.fc2 = _scaled(block.mlp.fc2, block.gamma_2)

    def forward(
        self, tokens: Float[Tensor, "batch token dim"], bias: Float[Tensor, "1 head token token"] | None
    ) -> Float[Tensor, "batch token dim"]:
        num_tokens = tokens.shape[1]
        parts = self.qkv(self.norm1(tokens)).reshape(-1, num_tokens, 3, self.num_heads, self._head_dim)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        tokens = tokens + self.proj(seen.transpose(1, 2).reshape(-1, num_tokens, self.proj.in_features))
        return tokens + self.mlp(self.norm2(tokens))

    @property
    def _head_dim(self) -> int:
        return self.proj.in_features // self.num_heads


class FoldedBeit(BeitBody):
    """A BEiT whose blocks are folded. Its numbers differ from the model's by rounding only."""

    def __init__(self, model: Beit) -> None:
        super().__init__(model)
        table: Any = model.rel_pos_bias
        shared: Any = None if table is None else table()[None]
        blocks: Any = model.blocks
        self.blocks = nn.ModuleList(FoldedBlock(block) for block in blocks)
        own = [_own_bias(block.attn) for block in blocks]
        self.is_shared = shared is not None and not any(bias is not None for bias in own)
        if self.is_shared:
            self.register_buffer("bias", shared.detach())
        for number, bias in enumerate([] if self.is_shared else own):
            if bias is not None:
                self.register_buffer(f"bias_{number}", (bias if shared is None else bias + shared).detach())

    def tokens(self, images: Tensor, layers: Sequence[int], *, norm: bool) -> list[Tokens]:
        """See `Body`."""
        found, tokens = {}, self.embed(images)
        for number, block in enumerate(self.blocks[: max(layers)]):
            tokens = block(tokens, self._bias(number))
            if number + 1 in layers:
                found[number + 1] = self.split(self.model.norm(tokens) if norm else tokens)
        return [found[number] for number in layers]

    def _bias(self, number: int) -> Any:
        return self.bias if self.is_shared else getattr(self, f"bias_{number}", None)


def _own_bias(attention: Any) -> Tensor | None:
    """What a block adds to its scores by a table of its own."""
    return None if attention.relative_position_bias_table is None else attention._get_rel_pos_bias()


def _folded_qkv(attention: Any) -> nn.Linear:
    """The three projections as one, queries already scaled."""
    weight = attention.qkv.weight.detach().clone()
    width = len(weight) // 3
    linear = nn.Linear(weight.shape[1], len(weight), device=weight.device)
    bias = torch.zeros(len(weight), device=weight.device)
    if attention.q_bias is not None:
        bias[:width], bias[2 * width :] = attention.q_bias.detach(), attention.v_bias.detach()
    weight[:width] *= attention.scale
    bias[:width] *= attention.scale
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear


def _scaled(linear: nn.Linear, scale: Tensor | None) -> nn.Linear:
    """The linear map whose outputs are multiplied by `scale`."""
    found = copy.deepcopy(linear)
    if scale is not None:
        found.weight = nn.Parameter(linear.weight.detach() * scale.detach()[:, None])
        if linear.bias is not None:
            found.bias = nn.Parameter(linear.bias.detach() * scale.detach())
    return found
