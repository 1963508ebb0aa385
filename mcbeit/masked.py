"""The masked image model: backbone, vocabulary head and objective in one module, so that one call gives the loss."""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from mcbeit.config import Config
from mcbeit.group import ALONE, Group
from mcbeit.loss import Codes, multi_choice_loss, row_chunks
from mcbeit.targets import entropy, gather_patches, mixing_weights, patch_affinity
from mcbeit.vit import VisionTransformer, truncated_normal


class ObjectiveConfig(Config):
    """What is predicted: equations (1) to (5) of `targets.py`."""

    targets: Literal["multi-choice", "hard"] = "multi-choice"  # hard: one code per patch, as in BEiT
    temperature: float | None = Field(None, gt=0)  # tau; None: calibrated, or else the tokenizer's own default
    target_perplexity: float | None = Field(None, gt=1)  # calibrate tau so that patches have this many choices
    refine_weight: float = Field(0.2, ge=0, le=1)  # omega of the official code, which is accepted as a name too
    similarity_temperature: float = Field(1.0, gt=0)  # tau_sim
    detach_similarity: bool = False  # stop the gradient that the official code lets through the affinity
    affinity: Literal["online", "ema"] = "online"  # features of the masked image, or a teacher's of the full image
    ema_decay: float = Field(0.999, ge=0, lt=1)  # of the teacher, per step

    @model_validator(mode="before")
    @classmethod
    def _omega_is_the_refine_weight(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "omega" not in values:
            return values
        if "refine_weight" in values:
            raise ValueError("objective.omega is another name of objective.refine_weight; set one of them only")
        return {"refine_weight" if key == "omega" else key: value for key, value in values.items()}

    @model_validator(mode="after")
    def _one_temperature(self) -> "ObjectiveConfig":
        if self.temperature is not None and self.target_perplexity is not None:
            raise ValueError(
                "objective.temperature and objective.target_perplexity exclude each other; set one of them to null"
            )
        return self

    @property
    def hard(self) -> bool:
        """Whether each patch has one choice only."""
        return self.targets == "hard"

    @property
    def has_teacher(self) -> bool:
        """Whether a slowly moving copy of the backbone gives the affinity."""
        return self.affinity == "ema" and self.refine_weight > 0


class Prediction(NamedTuple):
    """What one forward pass gives: the loss with its gradients, and what the measurements need."""

    loss: Float[Tensor, ""]
    features: Float[Tensor, "batch patch dim"]  # after the final norm, detached
    mixing: Float[Tensor, "batch masked patch"] | None  # A, detached; None if nothing is refined


class MaskedImageModel(nn.Module):
    """Predict the codes of masked patches."""

    def __init__(self, backbone: VisionTransformer, vocab_size: int, objective: ObjectiveConfig) -> None:
        super().__init__()
        self.backbone, self.objective = backbone, objective
        self.lm_head = nn.Linear(backbone.embed_dim, vocab_size)
        truncated_normal(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)

    def forward(
        self,
        images: Float[Tensor, "batch channel height width"],
        mask: Bool[Tensor, "batch patch"],
        patch_ids: Int[Tensor, "batch masked"],
        codes: Codes,
        teacher_features: Float[Tensor, "batch patch dim"] | None = None,
        dice: Float[Tensor, "batch die"] | None = None,
    ) -> Prediction:
        """The loss of a batch; `patch_ids` are the masked patches, `teacher_features` replace ours in the affinity.

        `dice` are those of drop path.
        """
        features = self.backbone.forward_tokens(images, mask, dice)[:, 1:]
        mixing = self._mixing(features if teacher_features is None else teacher_features, patch_ids)
        loss = multi_choice_loss(
            gather_patches(features, patch_ids), self.lm_head.weight, self.lm_head.bias, codes, patch_ids, mixing
        )
        return Prediction(loss, features.detach(), None if mixing is None else mixing.detach())

    def _mixing(self, features: Tensor, patch_ids: Tensor) -> Tensor | None:
        options = self.objective
        if options.refine_weight == 0:
            return None
        if options.detach_similarity:
            features = features.detach()
        affinity = patch_affinity(features, patch_ids, similarity_temperature=options.similarity_temperature)
        return mixing_weights(affinity, patch_ids, refine_weight=options.refine_weight)


@torch.no_grad()
def measure(
    model: MaskedImageModel, prediction: Prediction, codes: Codes, patch_ids: Int[Tensor, "batch masked"]
) -> dict[str, Tensor]:
    """What a log line says of a part of a batch, on its device: scalars, and how often each code is the best.

    `target_entropy` is in nats; `neighbours` is exp of the entropy of the affinity, between 1 and the patches.
    """
    vocabulary, device = codes.logits.shape[2], codes.logits.device
    counts = torch.zeros(vocabulary, device=device)
    hits, spread = torch.zeros((), device=device), torch.zeros((), device=device)
    for rows in row_chunks(codes):
        ids, logits = patch_ids[rows], codes.logits_of(rows)
        best = logits.argmax(dim=-1)
        features = gather_patches(prediction.features[rows], ids).to(model.lm_head.weight.dtype)
        guess = model.lm_head(features).argmax(dim=-1)
        hits += (guess == best.gather(1, ids)).sum()
        probabilities = codes.probabilities(rows)
        mixing = prediction.mixing
        target = gather_patches(probabilities, ids) if mixing is None else mixing[rows].float() @ probabilities.float()
        spread += entropy(target).sum()
        counts.index_add_(0, best.flatten(), torch.ones(best.numel(), device=device))
    found = {
        "masked_accuracy": hits / patch_ids.numel(),
        "target_entropy": spread / patch_ids.numel(),
        "code_counts": counts,
    }
    if prediction.mixing is not None:
        weight = model.objective.refine_weight
        own = mixing_weights(torch.zeros_like(prediction.mixing), patch_ids, refine_weight=weight)
        found["neighbours"] = entropy((prediction.mixing - own) / weight).exp().mean()
    return found


def summarise(parts: list[dict[str, Tensor]], group: Group = ALONE) -> dict[str, Tensor]:
    """The measurements of a whole batch from those of its parts in all workers, as scalars; all parts count alike.

    `codes_used` counts the codes that are the best of some patch, `code_perplexity` how evenly they are.
    """
    means = {name: group.sum(torch.stack([part[name] for part in parts]).mean(dim=0)) / group.size for name in parts[0]}
    share = means.pop("code_counts")
    return {**means, "codes_used": (share > 0).sum(), "code_perplexity": entropy(share / share.sum()).exp()}
