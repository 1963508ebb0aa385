import math
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from mcbeit.config import validate
from mcbeit.errors import ConfigError
from mcbeit.masked import MaskedImageModel, ObjectiveConfig
from mcbeit.optim import OptimConfig, cosine, crops_per_step, decays, make_optimizer, steps_per_epoch
from mcbeit.vit import ModelConfig, VisionTransformer

PER_EPOCH = 625  # of ImageNet-1k at the published batch size


def schedule(config: OptimConfig, per_epoch: int = PER_EPOCH) -> list[float]:
    return [config.lr_at(step, per_epoch) for step in range(config.total_steps(per_epoch))]


def tiny_model() -> MaskedImageModel:
    config = ModelConfig(dim=8, depth=1, num_heads=2, patch_size=4, position="relative+learned")
    return MaskedImageModel(VisionTransformer(config, image_size=8), vocab_size=5, objective=ObjectiveConfig())


# schedule


def test_lr_at__is_the_published_schedule_by_default() -> None:
    config = OptimConfig()
    assert steps_per_epoch(1_281_167, config) == PER_EPOCH
    assert config.total_steps(PER_EPOCH) == 500_000
    values = {step: config.lr_at(step, PER_EPOCH) for step in (0, 1, 6249, 6250, 6251, 499_999)}
    assert values[0] == 0
    assert values[1] == pytest.approx(2.4004e-7, rel=1e-5)
    assert values[6249] == values[6250] == 1.5e-3
    assert values[6251] < 1.5e-3
    assert values[499_999] == pytest.approx(1.0000000015e-5, rel=1e-11)
    assert values[499_999] > 1e-5


def test_lr_at__rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    values = schedule(OptimConfig(epochs=10, warmup_epochs=2, lr=1.0, min_lr=0.2), per_epoch=10)
    assert values[:20] == pytest.approx([i / 19 for i in range(20)])
    assert values[20:] == pytest.approx([0.6 + 0.4 * math.cos(math.pi * i / 80) for i in range(80)])
    assert values[60] == pytest.approx(0.6)


@given(
    st.integers(1, 40), st.floats(0.01, 20), st.floats(0, 30), st.one_of(st.none(), st.integers(1, 100)), st.booleans()
)
def test_lr_at__stays_in_range_rises_then_falls_whatever_the_length(
    per_epoch: int, epochs: float, warmup_epochs: float, steps: int | None, decays_to_zero: bool
) -> None:
    assume(steps is not None or warmup_epochs < epochs)
    min_lr = 0.0 if decays_to_zero else 0.1
    config = OptimConfig(epochs=epochs, warmup_epochs=warmup_epochs, steps=steps, lr=0.5, min_lr=min_lr)
    values = schedule(config, per_epoch)
    assert 0 <= min(values) <= max(values) <= 0.5
    assert max(values) == 0.5  # reached even where the warm-up is longer than the run
    top = max(step for step, value in enumerate(values) if value == 0.5)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert all(value > min_lr for value in values[top:])


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (OptimConfig(steps=1, lr=0.5), [0.5]),
        (OptimConfig(steps=2, lr=0.5), [0, 0.5]),
        (OptimConfig(steps=3, lr=0.5), [0, 0.5, 0.5]),
        (OptimConfig(steps=3, lr=0.5, min_lr=0.0, warmup_epochs=0), [0.5, 0.375, 0.125]),
        (OptimConfig(epochs=0.001, warmup_epochs=0, lr=0.5), [0.5]),
        (OptimConfig(epochs=2, steps=1, lr=0.5), [0.5]),
    ],
)
def test_lr_at__of_runs_of_a_few_steps(config: OptimConfig, wanted: list[float]) -> None:
    assert schedule(config, per_epoch=10) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 5}, "optim.warmup_epochs=10 must be less than optim.epochs=5; set both"),
        ({"lr": 1e-3, "min_lr": 2e-3}, "optim.min_lr=0.002 is more than optim.lr=0.001; lower it"),
        ({"betas": [1.5, 0.9]}, "betas.0: input should be less than 1 (found 1.5)"),
        ({"epochs": float("inf")}, "epochs: input should be a finite number"),
    ],
)
def test_optim_config__refuses_what_does_not_train(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(OptimConfig, values)
    assert message in str(error.value)


def test_total_steps__may_be_given_instead_of_epochs() -> None:
    assert OptimConfig(epochs=3, warmup_epochs=0).total_steps(7) == 21
    assert OptimConfig(epochs=0.5, warmup_epochs=0).total_steps(7) == 4
    assert OptimConfig(epochs=3, steps=5).total_steps(7) == 5


def test_cosine__from_start_over_the_middle_to_the_end() -> None:
    assert [cosine(4.0, 2.0, step, 4) for step in (0, 2, 4)] == pytest.approx([4, 3, 2])


# make_optimizer


def test_decays__follows_the_official_rule() -> None:
    named = dict(tiny_model().named_parameters())
    undecayed = {name.removeprefix("backbone.") for name, parameter in named.items() if not decays(name, parameter)}
    assert undecayed == {
        *("cls_token", "pos_embed", "patch_embed.proj.bias", "norm.weight", "norm.bias", "lm_head.bias"),
        *(f"blocks.0.{name}" for name in ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias", "attn.proj.bias")),
        *(f"blocks.0.{layer}.{part}" for layer in ("norm1", "norm2") for part in ("weight", "bias")),
        *(f"blocks.0.mlp.{layer}.bias" for layer in ("fc1", "fc2")),
    }
    assert {"backbone.mask_token", "backbone.rel_pos_bias.relative_position_bias_table", "lm_head.weight"} < set(named)


def test_make_optimizer__puts_every_trainable_parameter_into_one_of_two_groups() -> None:
    model, extra = tiny_model(), nn.Linear(3, 2)
    model.backbone.patch_embed.requires_grad_(False)
    config = OptimConfig(weight_decay=0.07, lr=0.3, betas=(0.8, 0.9), eps=1e-6)
    decayed, undecayed = make_optimizer([model, extra], config).param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.07, 0)
    for group in (decayed, undecayed):
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.8, 0.9), 1e-6)
    found = [id(parameter) for group in (decayed, undecayed) for parameter in group["params"]]
    wanted = [p for module in (model, extra) for p in module.parameters() if p.requires_grad]
    assert sorted(found) == sorted(id(parameter) for parameter in wanted)
    assert id(extra.weight) in map(id, decayed["params"])
    assert id(extra.bias) in map(id, undecayed["params"])


def test_make_optimizer__decays_the_mask_token_and_not_the_cls_token() -> None:
    model = tiny_model()
    backbone = model.backbone
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer([model], OptimConfig(weight_decay=0.5, lr=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(backbone.mask_token, 0.95 * before["backbone.mask_token"])
    torch.testing.assert_close(model.lm_head.weight, 0.95 * before["lm_head.weight"])
    for name in ("cls_token", "pos_embed", "blocks.0.gamma_1", "norm.weight"):
        assert (backbone.get_parameter(name) == before[f"backbone.{name}"]).all()


# batches


def test_steps_per_epoch__decodes_every_image_once() -> None:
    config = OptimConfig(batch_size=8)
    assert steps_per_epoch(8, config) == 1
    assert steps_per_epoch(31, config) == 3  # the last 7 wait for the next epoch
    assert steps_per_epoch(31, config, masks_per_image=4) == 15  # 2 images with 4 masks each
    assert crops_per_step(OptimConfig(batch_size=24, accumulate=3), masks_per_image=2) == 12


def test_steps_per_epoch__refuses_a_batch_larger_than_the_source() -> None:
    message = "optim.batch_size=64 needs 32 images per step, but the source has 20; set optim.batch_size to at most 40"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        steps_per_epoch(20, OptimConfig(batch_size=64), masks_per_image=2)
    assert steps_per_epoch(20, OptimConfig(batch_size=40), masks_per_image=2) == 1


@pytest.mark.parametrize(("batch_size", "masks", "accumulate"), [(10, 4, 1), (10, 1, 3), (6, 2, 2)])
def test_crops_per_step__refuses_a_batch_that_masks_and_parts_do_not_divide(
    batch_size: int, masks: int, accumulate: int
) -> None:
    config = OptimConfig(batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(ConfigError) as error:
        steps_per_epoch(1000, config, masks_per_image=masks)
    parts = f"data.masks_per_image * optim.accumulate = {masks} * {accumulate} = {masks * accumulate}"
    assert str(error.value) == f"optim.batch_size={batch_size} must be a multiple of {parts}"


# OptimConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: input should be greater than or equal to 1"),
        ({"epochs": 0}, "epochs: input should be greater than 0"),
        ({"lr": -1}, "lr: input should be greater than 0"),
        ({"accumulate": 0}, "accumulate: input should be greater than or equal to 1"),
        ({"clip_grad": 0}, "clip_grad: input should be greater than 0"),
        ({"base_lr": 1e-3}, "unknown key 'base_lr'"),
    ],
)
def test_optim_config__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(OptimConfig, values)
