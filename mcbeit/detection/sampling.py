"""Which anchors and which proposals count in a training step."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

NUM_SEEDS = 2**24  # float32 dice tell so many apart


class DiceSampler:
    """Draws `count` candidates of each image, at most `positive_fraction` of them positive.

    It takes the place of torchvision's sampler, which draws from the global generator. Here one die per image decides,
    so that an image has the same candidates whichever worker it comes to.
    """

    def __init__(self, count: int, positive_fraction: float) -> None:
        self.count, self.positive_fraction = count, positive_fraction
        self._seeds: Sequence[int] | None = None

    def throw(self, dice: Float[Tensor, " image"] | None) -> None:
        """The dice of the images of the next step, in [0, 1)."""
        self._seeds = None if dice is None else [int(die * NUM_SEEDS) for die in dice.tolist()]

    def __call__(
        self, labels: list[Shaped[Tensor, " _candidates"]]
    ) -> tuple[list[Shaped[Tensor, " _candidates"]], list[Shaped[Tensor, " _candidates"]]]:
        """For each image masks of the positive and of the negative candidates that were drawn.

        Labels: at least 1 positive, 0 negative, below to be left out.
        """
        if self._seeds is None:
            raise RuntimeError("detection needs dice in training; give them to MaskRCNN.forward")
        drawn = [self._draw(found, seed) for found, seed in zip(labels, self._seeds, strict=True)]
        return [positive for positive, _ in drawn], [negative for _, negative in drawn]

    def _draw(self, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(labels.device).manual_seed(seed)
        positive, negative = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
        num_positive = min(len(positive), int(self.count * self.positive_fraction))
        masks = []
        for candidates, number in ((positive, num_positive), (negative, self.count - num_positive)):
            order = torch.randperm(len(candidates), generator=generator, device=labels.device)
            masks.append(torch.zeros_like(labels, dtype=torch.bool).index_fill(0, candidates[order[:number]], True))
        return masks[0], masks[1]
