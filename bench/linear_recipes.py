"""What publications call a linear probe: which tokens it sees, and how it is trained."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mcbeit.bench.head_training import HeadRecipe
from mcbeit.bench.linear_heads import HeadSpec
from mcbeit.bench.sweep import Column
from mcbeit.bodies import Body
from mcbeit.preprocess import Interpolation

RecipeName = Literal["beit", "mae", "dinov2"]
LR_BATCH = 256  # images, to which learning rates are given
DINOV2_LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
DINOV2_BLOCKS = 4  # whose cls tokens some of its heads see


class LinearRecipe(NamedTuple):
    """A protocol. `training` has the epochs of the publication."""

    training: HeadRecipe
    batch_size: int
    lrs: tuple[float, ...]  # for LR_BATCH images
    batch_norm: bool = False
    steps_per_epoch: int | None = None  # None: every image once
    interpolation: Interpolation = "bicubic"  # of the random crops

    def peak_lrs(self, batch_size: int) -> list[float]:
        """The learning rates of these batches."""
        return [lr * batch_size / LR_BATCH for lr in self.lrs]


RECIPES: dict[RecipeName, LinearRecipe] = {
    # unilm/beit/run_linear_eval.py: a head per block
    "beit": LinearRecipe(
        HeadRecipe("adamw", epochs=100, weight_decay=1e-4, schedule="per epoch"),
        1024,
        (1e-3,),
        interpolation="bilinear",
    ),
    # He et al. (2022), appendix A.1
    "mae": LinearRecipe(HeadRecipe("lars", epochs=90, warmup_epochs=10.0), 16384, (0.1,), batch_norm=True),
    # dinov2/eval/linear.py: a grid of learning rates, blocks and pooling, trained together
    "dinov2": LinearRecipe(HeadRecipe("sgd", epochs=10), 128, DINOV2_LRS, steps_per_epoch=1250),
}


def columns_of(name: RecipeName, body: Body) -> list[Column]:
    """The vectors that the heads see, of a network; without a cls token, means alone."""
    last = body.num_layers
    if name == "beit":
        poolings: Sequence[Literal["cls", "mean"]] = ("cls", "mean") if body.has_cls else ("mean",)
        return [Column(layer, pooling, False) for layer in range(1, last + 1) for pooling in poolings]
    norm = body.norms_tokens
    if not body.has_cls:
        return [Column(last, "mean", norm)]
    if name == "mae":
        return [Column(last, "cls", norm)]
    blocks = range(max(1, last - DINOV2_BLOCKS + 1), last + 1)
    return [*(Column(layer, "cls", norm) for layer in blocks), Column(last, "mean", norm)]


def head_specs(name: RecipeName, columns: Sequence[Column], lrs: Sequence[float]) -> list[HeadSpec]:
    """The heads; without columns each sees the one vector that there is."""
    return [
        HeadSpec(f"{seen}{f', lr {lr:.3g}' if len(lrs) > 1 else ''}", indices, lr)
        for seen, indices in _inputs(name, columns).items()
        for lr in lrs
    ]


def _inputs(name: RecipeName, columns: Sequence[Column]) -> dict[str, tuple[int, ...]]:
    """What heads see, by name."""
    if not columns:
        return {"embedding": (0,)}
    if name == "beit":
        layers = dict.fromkeys(column.layer for column in columns)
        return {
            f"layer {layer}": tuple(i for i, column in enumerate(columns) if column.layer == layer) for layer in layers
        }
    if len(columns) == 1:
        return {str(columns[0]): (0,)}
    mean, cls = len(columns) - 1, tuple(range(len(columns) - 1))
    wide = (
        {} if len(cls) == 1 else {f"cls of {len(cls)} blocks": cls, f"cls of {len(cls)} blocks and mean": (*cls, mean)}
    )
    return {"cls": cls[-1:], "cls and mean": (cls[-1], mean), **wide}
