"""Segmentation without learning: a patch is given the classes of the training patches that its features are nearest to.

Only patch features are asked for, so weights in torch, an exported graph and a service can all be measured.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from mcbeit.bench.data import BenchData
from mcbeit.bench.manifest import Used
from mcbeit.bench.model import BenchModel
from mcbeit.bench.tasks.scene_scores import scene_outcome
from mcbeit.bench.tasks.scene_windows import FrozenEncoder, Grids, SceneTaskConfig, patch_shares, window_batches
from mcbeit.bench.tasks.task import BenchTask, Outcome
from mcbeit.data import auto_workers
from mcbeit.device import choose_device
from mcbeit.errors import BenchError
from mcbeit.segmentation.judging import open_scenes_ahead
from mcbeit.segmentation.scenes import SceneSource
from mcbeit.segmentation.upernet import resized

MAX_COSINES = 2**26  # of asked and remembered patches at once: 256 MB


class KnnSceneConfig(SceneTaskConfig):
    """The settings of `segmentation-knn`."""

    k: int = Field(30, ge=1)
    temperature: PositiveFloat = 0.07  # a neighbour counts as exp(cosine / temperature)
    patches: int = Field(200_000, ge=1)  # that are remembered in all, at least one of each training image; by the seed


class Memory:
    """Patches of training images: their features, of unit length, and the share of each class in them."""

    def __init__(
        self, features: Float[Tensor, "patch dim"], shares: Float[Tensor, "patch class"], config: KnnSceneConfig
    ) -> None:
        self.features, self.shares = features.to(choose_device()), shares.to(choose_device())
        self.k, self.temperature = min(config.k, len(features)), config.temperature

    def score(self, grids: Grids) -> Float[Tensor, "window class row column"]:
        """The shares of the nearest patches, weighted by how near they are."""
        windows, dim, rows, columns = grids.shape
        asked = F.normalize(grids.to(self.features).permute(0, 2, 3, 1).reshape(-1, dim), dim=1)
        at_once = max(1, MAX_COSINES // len(self.features))
        shares = torch.cat([self._vote(part) for part in asked.split(at_once)])
        return shares.view(windows, rows, columns, -1).permute(0, 3, 1, 2).cpu()

    def _vote(self, asked: Float[Tensor, "patch dim"]) -> Float[Tensor, "patch class"]:
        cosines, found = (asked @ self.features.T).topk(self.k, dim=1)
        weights = (cosines / self.temperature).softmax(dim=1)
        return torch.einsum("qk,qkc->qc", weights, self.shares[found])


def run(model: BenchModel, data: BenchData, config: KnnSceneConfig) -> Outcome:
    """Remember patches of `train`, measure on `val`."""
    scenes, frozen, before = data.scenes(), FrozenEncoder(model.encoder, config), time.monotonic()
    num_workers = auto_workers(model.config.data)
    memory, train = remember(scenes.train, frozen, config, num_workers=num_workers)
    remembered = time.monotonic() - before

    def score(grids: Grids) -> Float[Tensor, "window class size size"]:
        return resized(memory.score(grids), (frozen.size, frozen.size))

    each = frozen.judge(scenes.val, score, num_workers=num_workers)
    return scene_outcome(
        scenes,
        each,
        lambda pixels: frozen.find(pixels, score),
        seed=config.seed,
        selection="none",
        train=train,
        seconds={"remember": remembered, "judge": time.monotonic() - before - remembered},
        remarks=(f"{len(memory.features):,} training patches, k={memory.k}, T={config.temperature:g}",),
    )


def remember(
    source: SceneSource, frozen: FrozenEncoder, config: KnnSceneConfig, *, num_workers: int
) -> tuple[Memory, Used]:
    """Patches of all training images with a label, the same number of each; whole images in windows side by side.

    Raises BenchError if there is none.
    """
    rng, quota = np.random.default_rng(config.seed), max(1, config.patches // len(source))
    features, shares, num_unreadable = [], [], 0
    for scene in open_scenes_ahead(source, np.arange(len(source)), num_workers):
        if scene is None:
            num_unreadable += 1
            continue
        found, known = _patches(*scene, frozen, source.num_classes)
        kept = torch.from_numpy(np.sort(rng.permutation(len(found))[:quota]))
        features.append(found[kept])
        shares.append(known[kept])
    if not features or not sum(map(len, features)):
        raise BenchError(f"no training image in '{source.root}' can be read and has a labelled patch")
    used = Used(num_used=len(source) - num_unreadable, num_unreadable=num_unreadable)
    return Memory(torch.cat(features), torch.cat(shares), config), used


def _patches(
    pixels: np.ndarray, labels: np.ndarray, frozen: FrozenEncoder, num_classes: int
) -> tuple[Float[Tensor, "patch dim"], Float[Tensor, "patch class"]]:
    """The patches of an image that have a label."""
    features, shares = [], []
    for windows, maps in window_batches(pixels, labels, frozen):
        grids = frozen.grids(windows)
        features.append(grids.permute(0, 2, 3, 1).flatten(0, 2))
        shares.append(patch_shares(maps, frozen.encoder.spec.grid, num_classes).flatten(0, 2))
    unit, known = F.normalize(torch.cat(features), dim=1), torch.cat(shares)
    has_label = known.sum(dim=1) > 0
    return unit[has_label], known[has_label]


PRESETS: dict[Any, dict[str, Any]] = {"smoke": {"patches": 5000}, "short": {"patches": 50_000}, "paper": {}}
TASK = BenchTask(
    "segmentation-knn",
    1,
    "semantic segmentation, neighbours of frozen patch features",
    "embedding",
    "scenes",
    KnnSceneConfig,
    PRESETS,
    run,
)
