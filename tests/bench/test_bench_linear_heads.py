"""Many linear heads, trained together as each would be alone."""

import io
import math
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from mcbeit.bench.head_training import HeadRecipe, HeadTraining, OptimizerName
from mcbeit.bench.linear_heads import Batch, HeadSpec, LinearHeads, evaluate_heads
from mcbeit.errors import BenchError

DIM, NUM_CLASSES, STEPS = 6, 3, 4
SPECS = (
    HeadSpec("first, slow", (0,), 0.01),
    HeadSpec("first, fast", (0,), 0.3),
    HeadSpec("second", (1,), 0.3),
    HeadSpec("both", (0, 1), 0.1),
)
RECIPES = {name: HeadRecipe(name, epochs=3, warmup_epochs=0.5) for name in get_args(OptimizerName)}


def batches(epoch: int, *, steps: int = STEPS) -> Iterator[Batch]:
    """Two columns of features; the second tells the classes apart, the first less so."""
    generator = torch.Generator().manual_seed(100 + epoch)
    centres = torch.randn(NUM_CLASSES, 2, DIM, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        labels = torch.randint(NUM_CLASSES, (32,), generator=generator)
        noise = torch.randn(32, 2, DIM, generator=generator) * torch.tensor([2.0, 0.3])[:, None]
        yield centres[labels] + noise, labels


def make(specs: tuple[HeadSpec, ...] = SPECS, *, batch_norm: bool = True) -> LinearHeads:
    return LinearHeads(specs, DIM, NUM_CLASSES, batch_norm=batch_norm, seed=5)


def trained(recipe: HeadRecipe, specs: tuple[HeadSpec, ...] = SPECS) -> LinearHeads:
    heads = make(specs)
    HeadTraining(heads, recipe, steps_per_epoch=STEPS).run(batches)
    return heads


def test_linear_heads__see_their_columns() -> None:
    heads = make(batch_norm=False)
    features, _ = next(batches(0))
    logits = heads(features)
    assert logits.shape == (4, 32, NUM_CLASSES)
    assert torch.equal(logits[2], features[:, 1] @ heads.heads[2].weight.T)
    assert torch.allclose(logits[3], features.flatten(1) @ heads.heads[3].weight.T, atol=1e-6)
    assert torch.equal(logits[0], logits[1])  # the same columns: the same start


def test_linear_heads__standardise_by_the_batch_then_by_what_they_have_seen() -> None:
    heads = make()
    assert len(heads.norms) == 3  # one for each choice of columns
    for features, _ in batches(0, steps=100):
        heads(3 * features + 5)
    heads.eval()
    features, _ = next(batches(0))
    seen = heads.norms[0](3 * features[:, 0] + 5)
    assert abs(float(seen.mean())) < 0.1
    assert abs(float(seen.std()) - 1) < 0.1
    assert not list(heads.norms.parameters())


def test_linear_heads__start_does_not_touch_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(make().heads[3].weight, make().heads[3].weight)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = LinearHeads(SPECS, DIM, NUM_CLASSES, init_std=0.5, seed=6)
    assert 0.3 < float(other.heads[3].weight.detach().std()) < 0.7


def test_linear_heads__errors() -> None:
    with pytest.raises(BenchError, match="no linear head"):
        make(())
    with pytest.raises(BenchError, match="two linear heads are called 'a'"):
        make((HeadSpec("a", (0,), 0.1), HeadSpec("a", (1,), 0.1)))
    with pytest.raises(BenchError, match="'a' sees no column"):
        make((HeadSpec("a", (), 0.1),))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training__each_head_ends_as_it_would_alone(recipe: HeadRecipe) -> None:
    together = trained(recipe)
    for number, spec in enumerate(SPECS):
        alone = trained(recipe, (spec,))
        assert torch.equal(alone.heads[0].weight, together.heads[number].weight)
        assert torch.equal(alone.heads[0].bias, together.heads[number].bias)
    assert not torch.equal(together.heads[0].weight, together.heads[1].weight)


def test_training__a_head_that_diverges_leaves_the_others_alone() -> None:
    wild = HeadSpec("wild", (0,), 1e38)
    recipe = HeadRecipe("sgd", epochs=3)
    heads = trained(recipe, (*SPECS, wild))
    assert not heads.heads[4].weight.isfinite().all()
    assert torch.equal(heads.heads[3].weight, trained(recipe).heads[3].weight)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_training__goes_on_to_the_same_end_after_a_stop(recipe: HeadRecipe) -> None:
    class Stop(Exception):
        pass

    def save(losses: np.ndarray) -> None:
        torch.save(training.state_dict(), saved)
        raise Stop

    saved = io.BytesIO()
    training = HeadTraining(make(), recipe, steps_per_epoch=STEPS)
    with pytest.raises(Stop):
        training.run(batches, on_epoch=save)
    saved.seek(0)
    later = HeadTraining(make(), recipe, steps_per_epoch=STEPS)
    later.load_state_dict(torch.load(saved, weights_only=True))
    assert later.epoch == 1
    later.run(batches)
    whole = trained(recipe).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in later.heads.state_dict().items())


def test_training__learns_and_tells_the_losses_of_each_epoch() -> None:
    heads, told = make(), list[np.ndarray]()
    training = HeadTraining(heads, HeadRecipe("sgd", epochs=5), steps_per_epoch=STEPS)
    training.run(batches, on_epoch=told.append)
    losses = np.stack(told)
    assert losses.shape == (5, 4)
    assert (losses[-1] < losses[0]).all()
    assert losses[0, 0] == pytest.approx(math.log(NUM_CLASSES), abs=0.05)  # the slow one
    answers = evaluate_heads(heads, batches(1000))
    assert answers.top1[2].mean() > 0.95
    assert answers.top1[0].mean() < answers.top1[2].mean()


@pytest.mark.parametrize("steps", [STEPS - 1, STEPS + 1])
def test_training__errors(steps: int) -> None:
    training = HeadTraining(make(), RECIPES["sgd"], steps_per_epoch=STEPS)
    with pytest.raises(BenchError, match=f"epoch 0 had {steps} batches, not 4"):
        training.run(lambda epoch: batches(epoch, steps=steps))
    with pytest.raises(BenchError, match=r"3 epochs of warm-up leave nothing of 3 epochs"):
        HeadTraining(make(), HeadRecipe("sgd", epochs=3, warmup_epochs=3.0), steps_per_epoch=STEPS)


def test_lars__is_that_of_mae() -> None:
    """Against its update written out (facebookresearch/mae, util/lars.py), without weight decay."""
    heads, reference = make(batch_norm=False), make(batch_norm=False)
    recipe = HeadRecipe("lars", epochs=2, warmup_epochs=1.0)
    HeadTraining(heads, recipe, steps_per_epoch=STEPS).run(batches)
    momenta: dict[Tensor, Tensor] = {}
    for step, batch in enumerate([*batches(0), *batches(1)]):
        reference.zero_grad()
        reference.losses(*batch).sum().backward()
        for spec, head in zip(SPECS, reference.heads, strict=True):
            for parameter in head.parameters():
                update = parameter.grad
                if parameter.ndim > 1:
                    update = 0.001 * parameter.detach().norm() / update.norm() * update
                momenta[parameter] = 0.9 * momenta.get(parameter, torch.zeros_like(update)) + update
                parameter.data -= spec.lr * recipe.lr_factor(step, STEPS) * momenta[parameter]
    for head, expected in zip(heads.heads, reference.heads, strict=True):
        assert torch.allclose(head.weight, expected.weight, rtol=1e-4, atol=1e-7)
        assert torch.allclose(head.bias, expected.bias, rtol=1e-4, atol=1e-7)


def test_lr_factor__rises_and_falls_by_step() -> None:
    recipe = HeadRecipe("sgd", epochs=10, warmup_epochs=2.0)
    factors = [recipe.lr_factor(step, 5) for step in range(50)]
    assert factors[:11] == pytest.approx([step / 10 for step in range(11)])
    assert factors[30] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01


def test_lr_factor__stays_for_an_epoch() -> None:
    recipe = HeadRecipe("adamw", epochs=4, schedule="per epoch")
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [recipe.lr_factor(step, 3) for step in range(12)] == pytest.approx(np.repeat(expected, 3))


def test_evaluate_heads__ranks_the_classes() -> None:
    heads = LinearHeads((HeadSpec("identity", (0,), 0.1), HeadSpec("reversed", (0,), 0.1)), 8, 8)
    heads.heads[0].weight.data = torch.eye(8)
    heads.heads[1].weight.data = -torch.eye(8)
    features = torch.arange(8.0).expand(8, 1, 8)
    answers = evaluate_heads(heads, [(features[:5], torch.arange(5)), (features[5:], torch.arange(5, 8))])
    assert answers.predicted.tolist() == [8 * [7], 8 * [0]]
    assert answers.top1.tolist() == [[False] * 7 + [True], [True] + [False] * 7]
    assert answers.top5.tolist() == [[False] * 3 + [True] * 5, [True] * 5 + [False] * 3]


def test_evaluate_heads__leaves_the_statistics_and_the_mode() -> None:
    heads = make()
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    evaluate_heads(heads, batches(0))
    assert heads.training
    assert all(torch.equal(value, before[name]) for name, value in heads.state_dict().items())


def test_evaluate_heads__takes_halves() -> None:
    heads = make()
    halves = [(features.half(), labels) for features, labels in batches(0)]
    assert evaluate_heads(heads, halves).top1.shape == (4, 32 * STEPS)
