"""Mini-batch k-means: where centres start, how a step moves them, and what becomes of those that are not used."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mcbeit.agreement import NO_FLAGS, Flags, agree
from mcbeit.checkpoint import Checkpoint
from mcbeit.group import ALONE
from mcbeit.kmeans import KMeansTokenizer
from mcbeit.meter import StepResult
from mcbeit.tokenizer import CHUNK, distance_logits


@dataclass
class KMeansState:
    """What changes while centres are fitted. `step` counts finished steps."""

    model: KMeansTokenizer
    total: Float[Tensor, " code"]  # patches that each centre had since it was put where it is
    recent: Float[Tensor, " code"]  # patches since the last look for unused centres
    step: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)

    def checkpoint(self) -> Checkpoint:
        """All of it, as a checkpoint of the finished steps."""
        counts = {"total": self.total, "recent": self.recent}
        return Checkpoint(self.step, {"model": self.model.state_dict(), "counts": counts}, self.numbers)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Undo `checkpoint` on a state that was built from the same config."""
        self.model.load_state_dict(checkpoint.tensors["model"])
        self.total.copy_(checkpoint.tensors["counts"]["total"])
        self.recent.copy_(checkpoint.tensors["counts"]["recent"])
        self.step, self.numbers = checkpoint.step, dict(checkpoint.numbers)


def spread_centres(
    features: Float[Tensor, "patch dim"], count: int, generator: torch.Generator
) -> Float[Tensor, "code dim"]:
    """k-means++: each next centre is a patch drawn by its squared distance to the centres so far."""
    chosen = [int(torch.randint(len(features), (1,), generator=generator))]
    norms, nearest = features.square().sum(dim=1), torch.full((len(features),), torch.inf)
    for _ in range(count - 1):
        squared = norms + norms[chosen[-1]] - 2 * (features @ features[chosen[-1]])
        nearest = torch.minimum(nearest, squared.clamp(min=0))
        weights = nearest if float(nearest.sum()) > 0 else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return features[chosen].clone()


def assign(
    features: Float[Tensor, "patch dim"], codebook: Float[Tensor, "code dim"]
) -> tuple[Int[Tensor, " patch"], Float[Tensor, " patch"]]:
    """The nearest centre of each patch and its squared distance; memory does not grow with their product."""
    rows = max(CHUNK // len(codebook), 1)
    best = [distance_logits(part[None], codebook)[0].max(dim=1) for part in features.split(rows)]
    return torch.cat([found.indices for found in best]), -torch.cat([found.values for found in best]).clamp(max=0)


def fit_step(state: KMeansState, features: Float[Tensor, "patch dim"], flags: Flags = NO_FLAGS) -> StepResult:
    """One step of mini-batch k-means; the loss is the mean squared distance before it. It is skipped if not finite."""
    model = state.model
    nearest, squared = assign(features, model.codebook)
    verdict = agree(ALONE, squared.mean(), flags)
    skipped = verdict.is_bad > 0
    counts = torch.zeros_like(state.total).index_add_(0, nearest, torch.ones_like(squared))
    means = torch.zeros_like(model.codebook).index_add_(0, nearest, features) / counts.clamp(min=1)[:, None]
    total = state.total + counts
    moved = model.normalised(model.codebook.lerp(means, (counts / total.clamp(min=1))[:, None]))
    model.codebook.copy_(torch.where(skipped, model.codebook, moved))
    state.total.copy_(torch.where(skipped, state.total, total))
    state.recent += torch.where(skipped, 0.0, counts)
    state.step += 1
    use = {"code_perplexity": torch.special.entr(counts / counts.sum()).sum().exp(), "codes_used": (counts > 0).sum()}
    return StepResult(verdict.loss, None, use, skipped, verdict.flags)


def revive(state: KMeansState, features: Float[Tensor, "patch dim"], seed: int) -> int:
    """Put centres that had no patch of late on patches drawn by their squared distance to all; returns how many."""
    dead = (state.recent == 0).nonzero()[:, 0].cpu()
    if len(dead) == 0:
        return 0
    _, squared = assign(features, state.model.codebook)
    weights = squared.cpu() if int((squared > 0).sum()) >= len(dead) else torch.ones(len(features))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(weights, len(dead), replacement=len(weights) < len(dead), generator=generator)
    state.model.codebook[dead.to(features.device)] = features[chosen.to(features.device)]
    state.total[dead.to(features.device)] = 0
    return len(dead)
