"""The backbone with a linear head for classes: what finetuning trains."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mcbeit.vit import VisionTransformer


class Classifier(nn.Module):
    """Class scores from the mean of the patch tokens.

    The head starts as normal(0, 0.02) cut at 2 (absolute), times `head_init_scale`, its bias as zero. The mask token
    is kept for those who pretrain on, and learns nothing.
    """

    def __init__(self, backbone: VisionTransformer, num_classes: int, *, head_init_scale: float = 1.0) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        with torch.no_grad():
            self.head.weight *= head_init_scale
        nn.init.zeros_(self.head.bias)
        backbone.mask_token.requires_grad_(False)

    def forward(
        self, images: Float[Tensor, "batch channel height width"], dice: Float[Tensor, "batch die"] | None = None
    ) -> Float[Tensor, "batch class"]:
        """Scores in float32, before any softmax; `dice` are those of drop path."""
        tokens = self.backbone.forward_tokens(images, dice=dice)
        return self.head(self.backbone.pooled(tokens)).float()
