"""The encoder of VQ-KD (Peng et al., 2022), the tokenizer of BEiT v2: a transformer and a codebook of directions.

Module names follow the published files (`encoder.*`, `encode_task_layer.*`, `quantize.embedding.weight`). The default
sizes are the published ones: 8192 codes of 32 numbers, 224 px, 86.4 M parameters without the codebook.
"""

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from timm.models.beit import Beit
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.tokenizer import Tokenizer, distance_logits

HEAD_DIM = 64


class VQKDConfig(Config):
    """The size of the encoder; the defaults are the published model's."""

    vocab_size: int = Field(8192, ge=2)
    code_dim: int = Field(32, ge=1)
    dim: int = Field(768, ge=HEAD_DIM, multiple_of=HEAD_DIM)  # heads are 64 wide
    depth: int = Field(12, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    patch_size: int = Field(16, ge=1)
    image_size: int = Field(224, ge=1)  # pixels; its positions are for this size only

    @model_validator(mode="after")
    def _whole_patches(self) -> "VQKDConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        return self


class VQKD(Tokenizer):
    """Encoder, task layer to the codes' space, unit length, distance to the codes; input normalised to [-1, 1].

    Distances lie in [0, 4], so the temperature is small; the default is a guess within what is known to make sense.
    """

    interpolation = "bicubic"
    default_temperature = 0.05

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__()
        self.vocab_size, self.stride, self.image_size = config.vocab_size, config.patch_size, config.image_size
        self.encoder = Beit(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.dim,
            depth=config.depth,
            num_heads=config.dim // HEAD_DIM,
            mlp_ratio=config.mlp_ratio,
            use_abs_pos_emb=True,
            init_values=None,
            num_classes=0,
        )
        self.encode_task_layer = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.Tanh(), nn.Linear(config.dim, config.code_dim)
        )
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config.vocab_size, config.code_dim)})

    def code_logits(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patch code"]:
        """Minus the squared distance of each patch's direction to each code, which has about unit length."""
        patches = self.encoder.fc_norm(
            self.encoder.forward_features(images)[:, 1:]
        )  # of every patch, not of their mean
        directions = F.normalize(self.encode_task_layer(patches).float(), dim=-1)
        return distance_logits(directions, self.quantize.get_parameter("embedding.weight"))
