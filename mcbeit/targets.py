"""Multi-choice targets of mc-BEiT (Li et al., ECCV 2022, arXiv 2203.15371), as pure functions.

For the patches i, j of one image, with tokenizer logits l and backbone features f:

    p_i  = softmax(l_i / tau)                                  (1) tempered code probabilities
    s_ij = <f_i, f_j> / (|f_i| |f_j|)                          (2) cosine similarity of two patches
    W_ij = softmax_j(s_ij / tau_sim)                           (3) patch affinity, rows sum to 1
    z_i  = omega * sum_j W_ij p_j + (1 - omega) * p_i          (4) refined multi-choice target
    L    = - mean over masked i of sum_k z_ik log q_ik         (5) soft cross-entropy with the prediction q

The numbers are this module's own. omega is `refine_weight`, with the meaning of the official code: the share of the
refined term. `mcbeit/loss.py` computes (5) without ever forming (4); `tests/test_loss.py` holds the dense form.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def code_probabilities(
    logits: Float[Tensor, "batch patch code"], *, temperature: float
) -> Float[Tensor, "batch patch code"]:
    """Equation (1), in at least float32. A higher temperature gives softer targets; float64 stays float64."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.softmax(logits.to(dtype) / temperature, dim=-1)


def hard_probabilities(logits: Float[Tensor, "batch patch code"]) -> Float[Tensor, "batch patch code"]:
    """The limit of (1) for temperature -> 0: all mass on the best code, as in BEiT."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(dtype)


def gather_patches(
    tokens: Float[Tensor, "batch patch dim"], patch_ids: Int[Tensor, "batch masked"]
) -> Float[Tensor, "batch masked dim"]:
    """The tokens at the given patches, image by image, without a host-device synchronisation."""
    return tokens.gather(1, patch_ids[:, :, None].expand(-1, -1, tokens.shape[-1]))


def patch_affinity(
    features: Float[Tensor, "batch patch dim"],
    patch_ids: Int[Tensor, "batch masked"] | None = None,
    *,
    similarity_temperature: float,
) -> Float[Tensor, "batch masked patch"]:
    """Equations (2) and (3): the rows of W for the given patches (all patches if None), in at least float32.

    Gradients flow through both sides of the similarity; pass detached features to stop them.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.to(dtype), dim=-1)
        rows = unit if patch_ids is None else gather_patches(unit, patch_ids)
        return torch.softmax(rows @ unit.transpose(1, 2) / similarity_temperature, dim=-1)


def mixing_weights(
    affinity: Float[Tensor, "batch masked patch"], patch_ids: Int[Tensor, "batch masked"], *, refine_weight: float
) -> Float[Tensor, "batch masked patch"]:
    """The matrix A = omega W + (1 - omega) I, rows of the given patches: equation (4) is then z = A p."""
    own = torch.full_like(patch_ids, 1, dtype=affinity.dtype)[:, :, None] * (1.0 - refine_weight)
    return (affinity * refine_weight).scatter_add(2, patch_ids[:, :, None], own)


def refine(
    probabilities: Float[Tensor, "batch patch code"],
    affinity: Float[Tensor, "batch patch patch"],
    *,
    refine_weight: float,
) -> Float[Tensor, "batch patch code"]:
    """Equation (4) in its dense form, to look at and to test against; training uses `mcbeit.loss`."""
    return refine_weight * (affinity @ probabilities) + (1.0 - refine_weight) * probabilities


def entropy(probabilities: Float[Tensor, "*axes code"]) -> Float[Tensor, "*axes"]:
    """Shannon entropy over the last axis, in nats; exp of it is the effective number of choices."""
    return torch.special.entr(probabilities).sum(dim=-1)


def masked_patch_ids(mask: Bool[Tensor, "batch patch"]) -> Int[Tensor, "batch masked"]:
    """The indices of the masked patches, ascending. Every image must have the same number of them.

    Raises ValueError if the counts differ or if nothing is masked.
    """
    counts = mask.sum(dim=1)
    count = int(counts[0])
    if count == 0 or not bool((counts == count).all()):
        raise ValueError(f"every image needs the same number of masked patches, at least 1; found {counts.tolist()}")
    return mask.nonzero()[:, 1].view(len(mask), count)
