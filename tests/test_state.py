import pytest
import torch
from torch import nn

from mcbeit.checkpoint import CheckpointFolder, load_checkpoint
from mcbeit.device import PRECISIONS
from mcbeit.state import TrainingState

LR = 0.01
FINE = torch.zeros(())  # no worker has found anything bad


def network() -> nn.Sequential:
    """A small one with dropout, which draws from torch's global generator."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 2))


def new_state(precision: str = "fp32", *, with_teacher: bool = True) -> TrainingState:
    model = network()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), fused=True)
    return TrainingState.start(model, optimizer, PRECISIONS[precision], teacher_of=model if with_teacher else None)


def backward(state: TrainingState, seed: int, size: float = 1.0) -> float:
    images = size * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    loss = state.model(images).square().mean()
    state.scaler.scale(loss).backward()
    return loss.item()


def train(state: TrainingState, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(backward(state, state.step))
        state.apply_gradients(LR, 1.0, FINE)
        state.update_teacher(state.model, decay=0.9)
    return losses


def weights(model: nn.Module | None) -> list[list[float]]:
    assert model is not None
    return [parameter.flatten().tolist() for parameter in model.parameters()]


# checkpoint and restore


def test_restore__training_goes_on_to_the_last_bit(tmp_path) -> None:
    state = new_state()
    state.numbers["temperature"] = 0.1
    train(state, 3)
    path = CheckpointFolder(tmp_path).save(state.checkpoint())
    losses = train(state, 4)

    torch.manual_seed(99)
    other = new_state()
    other.numbers["leftover"] = 1
    other.restore(load_checkpoint(path))
    assert other.step == 3
    assert other.numbers == {"temperature": 0.1}
    assert train(other, 4) == losses
    assert other.step == state.step == 7
    assert weights(other.model) == weights(state.model)
    assert weights(other.teacher) == weights(state.teacher)
    assert len(set(losses)) == 4  # dropout and data were not the same in every step


def test_restore__before_the_first_step(tmp_path) -> None:
    path = CheckpointFolder(tmp_path).save(new_state().checkpoint())
    losses = train(new_state(), 2)
    other = new_state()
    torch.manual_seed(99)
    other.restore(load_checkpoint(path))
    assert train(other, 2) == losses


@pytest.mark.parametrize("with_teacher", [False, True])
def test_checkpoint__names_what_there_is(with_teacher: bool) -> None:
    state = new_state(with_teacher=with_teacher)
    train(state, 1)
    checkpoint = state.checkpoint()
    assert checkpoint.step == 1
    assert set(checkpoint.tensors) == {"model", "optimizer", "random"} | ({"teacher"} if with_teacher else set())
    assert set(checkpoint.tensors["model"]) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert set(checkpoint.numbers) == {"scaler"}


# apply_gradients


def test_apply_gradients__takes_one_step_with_this_lr() -> None:
    state, model = new_state(), network()
    wanted = torch.optim.AdamW(model[3].parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    for parameter, copy in zip(state.model[3].parameters(), model[3].parameters(), strict=True):
        parameter.grad = torch.full_like(parameter, 0.01)
        copy.grad = torch.full_like(copy, 0.01)
    norm = state.apply_gradients(LR, None, FINE).gradient_norm
    wanted.step()
    assert norm.item() == pytest.approx(0.01 * (16 + 2) ** 0.5)
    torch.testing.assert_close(state.model[3].bias, model[3].bias)
    torch.testing.assert_close(state.model[3].weight, model[3].weight - LR * 0.1 * network()[3].weight)
    assert [group["lr"] for group in state.optimizer.param_groups] == [LR, LR]
    assert all(parameter.grad is None for parameter in state.model.parameters())
    assert state.step == 1


@pytest.mark.parametrize(("clip_grad", "limited"), [(None, 8.0), (20.0, 8.0), (2.0, 2.0)])
def test_apply_gradients__limits_the_norm_and_tells_what_it_was(clip_grad: float | None, limited: float) -> None:
    state = new_state()
    norms = []
    state.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(torch.stack([p.grad.norm() for p in state.model.parameters()]).norm().item())
    )
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.model[0].bias.grad = torch.full((8,), 8.0 / 8**0.5)
    assert state.apply_gradients(LR, clip_grad, FINE).gradient_norm.item() == pytest.approx(8.0)
    assert norms == [pytest.approx(limited, rel=1e-5)]


@pytest.mark.parametrize(("precision", "scale"), [("fp32", 1.0), ("bf16", 1.0), ("fp16", 65536.0)])
def test_apply_gradients__the_loss_scale_of_fp16_is_taken_out_again(precision: str, scale: float) -> None:
    plain, state = new_state(), new_state(precision)
    assert state.scaler.get_scale() == scale
    for one in (plain, state):
        torch.manual_seed(1)
        backward(one, seed=5)
    assert state.model[3].weight.grad is not None
    torch.testing.assert_close(state.model[3].weight.grad, plain.model[3].weight.grad * scale)
    norms = [one.apply_gradients(LR, 1.0, FINE).gradient_norm for one in (plain, state)]
    torch.testing.assert_close(norms[1], norms[0])
    torch.testing.assert_close(state.model[3].weight, plain.model[3].weight)


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "bf16")])
def test_restore__goes_on_in_another_precision(before: str, after: str, tmp_path) -> None:
    saved, state = new_state(before), new_state(after)
    train(saved, 2)
    state.restore(load_checkpoint(CheckpointFolder(tmp_path).save(saved.checkpoint())))
    assert state.step == 2
    assert state.scaler.get_scale() == (65536.0 if after == "fp16" else 1.0)


def test_apply_gradients__fp16_leaves_out_a_step_that_overflowed(tmp_path) -> None:
    state = new_state("fp16")
    before = weights(state.model)
    backward(state, seed=0, size=1e30)
    state.apply_gradients(LR, 1.0, FINE)
    assert weights(state.model) == before
    assert state.step == 1
    assert state.scaler.get_scale() == 32768.0

    other = new_state("fp16")
    other.restore(load_checkpoint(CheckpointFolder(tmp_path).save(state.checkpoint())))
    assert other.scaler.get_scale() == 32768.0


# the teacher


def test_start__the_teacher_is_a_copy_that_does_not_learn() -> None:
    state = new_state()
    assert state.teacher is not None
    assert weights(state.teacher) == weights(state.model)
    assert not state.teacher.training
    assert not any(parameter.requires_grad for parameter in state.teacher.parameters())
    train(state, 1)
    assert state.model.training
    assert weights(state.teacher) != weights(state.model)


def test_update_teacher__is_a_moving_average() -> None:
    state = new_state()
    assert state.teacher is not None
    old = [parameter.clone() for parameter in state.teacher.parameters()]
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(1.0)
    state.update_teacher(state.model, decay=0.75)
    for parameter, before, student in zip(state.teacher.parameters(), old, state.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, 0.75 * before + 0.25 * student)


def test_update_teacher__without_one_does_nothing() -> None:
    state = new_state(with_teacher=False)
    assert state.teacher is None
    state.update_teacher(state.model, decay=0.5)
