import math

import pytest
import torch

from mcbeit import meter as meter_module
from mcbeit.agreement import Flags
from mcbeit.meter import Meter, StepResult, is_due, status_line, target_warnings

CPU = torch.device("cpu")
V = 8192
LIMIT = math.log(V)


class Clock:
    """Stands still until it is told to move."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(meter_module, "time", found := Clock())
    return found


def result(loss: float, norm: float = 1.0, **measurements: float) -> StepResult:
    found = {name: torch.tensor(value) for name, value in measurements.items()}
    is_bad = torch.tensor(not math.isfinite(loss + norm))
    return StepResult(torch.tensor(loss), torch.tensor(norm), found, is_bad, torch.zeros(len(Flags())))


# Meter


def test_meter__means_since_the_last_reading_and_what_the_last_step_measured(clock) -> None:
    meter = Meter(CPU)
    for loss in (9.0, 8.0, 4.0):
        meter.count(result(loss, norm=loss / 2), num_images=64)
    clock.now += 6.0
    assert meter.read() == {"loss": 7.0, "gradient_norm": 2.0, "images_per_second": 32.0}

    meter.count(result(3.0, norm=0.5, target_entropy=1.25, masked_accuracy=0.25), num_images=10)
    clock.now += 1.0
    assert meter.read() == {
        "loss": 3.0,
        "target_entropy": 1.25,
        "masked_accuracy": 0.25,
        "loss_above_entropy": 1.75,
        "gradient_norm": 0.5,
        "images_per_second": 10.0,
    }


def test_meter__entropy_is_compared_with_the_loss_of_the_same_step(clock) -> None:
    meter = Meter(CPU)
    meter.count(result(9.0), num_images=1)
    meter.count(result(5.0, target_entropy=2.0), num_images=1)
    clock.now += 1.0
    values = meter.read()
    assert (values["loss"], values["loss_above_entropy"]) == (7.0, 3.0)


def test_meter__time_in_a_pause_does_not_count(clock) -> None:
    meter = Meter(CPU)
    for _ in range(2):
        meter.count(result(1.0), num_images=50)
        clock.now += 2.0
        with meter.paused():
            clock.now += 1000.0
    assert meter.read()["images_per_second"] == 25.0
    meter.count(result(1.0), num_images=50)
    clock.now += 2.0
    assert meter.read()["images_per_second"] == 25.0  # nor is it taken off the next reading


def test_meter__flops_and_their_share_of_the_peak(clock) -> None:
    meter = Meter(CPU, flops_per_image=3e9, peak=1e12)
    meter.count(result(1.0), num_images=100)
    clock.now += 2.0
    values = meter.read()
    assert values["model_flops"] == 150e9
    assert values["share_of_peak"] == pytest.approx(0.15)


def test_meter__a_clock_that_stands_still_gives_no_error(clock) -> None:
    meter = Meter(CPU)
    meter.count(result(1.0), num_images=1)
    assert math.isfinite(meter.read()["images_per_second"])


# is_due


@pytest.mark.parametrize(
    ("every_epochs", "wanted"),
    [
        (None, []),
        (1.0, [10, 20, 25]),
        (0.5, [5, 10, 15, 20, 25]),
        (2.0, [20, 25]),
        (99.0, [25]),
        (0.001, list(range(1, 26))),
    ],
)
def test_is_due__every_so_many_epochs_and_at_the_end(every_epochs: float | None, wanted: list[int]) -> None:
    assert [step for step in range(1, 26) if is_due(every_epochs, 10, step, 25)] == wanted


# target_warnings


GOOD = {"step": 500, "loss": 6.0, "target_entropy": 2.0, "code_perplexity": 900.0}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, None),
        ({"loss": LIMIT - 0.03}, None),
        ({"loss": LIMIT - 0.01}, "the loss is still that of a uniform guess (9.001, log V = 9.011)"),
        ({"loss": 20.0}, "the loss is still that of a uniform guess (20.000, log V = 9.011)"),
        ({"loss": LIMIT, "step": 99}, None),  # as it should be at the start
        ({"target_entropy": LIMIT - 0.01}, "the targets are uniform (entropy 9.001); lower the temperature"),
        ({"target_entropy": 0.02}, None),
        (
            {"target_entropy": 0.0},
            "the targets are in effect hard (entropy below 0.01); raise the temperature for multi-choice",
        ),
        ({"code_perplexity": 1.5}, "nearly all patches of this batch have the same code; check the tokenizer"),
        ({"code_perplexity": 2.0}, None),
    ],
)
def test_target_warnings__one_for_each_way_to_learn_nothing(change: dict[str, float], wanted: str | None) -> None:
    assert target_warnings(GOOD | change, V, hard=False) == ([] if wanted is None else [wanted])


def test_target_warnings__hard_targets_are_meant_to_have_no_entropy() -> None:
    assert target_warnings(GOOD | {"target_entropy": 0.0}, V, hard=True) == []
    assert len(target_warnings(GOOD | {"target_entropy": 0.0, "loss": 9.5}, V, hard=True)) == 1


def test_target_warnings__all_at_once() -> None:
    record = {"step": 500, "loss": 9.5, "target_entropy": LIMIT, "code_perplexity": 1.0}
    assert len(target_warnings(record, V, hard=False)) == 3


# status_line


def test_status_line__a_pretraining() -> None:
    record = {
        "step": 50,
        "epoch": 1.5,
        "lr": 0.0015,
        "loss": 6.12345,
        "loss_above_entropy": 4.5,
        "masked_accuracy": 0.125,
        "code_perplexity": 812.4,
        "images_per_second": 1234.5,
        "share_of_peak": 0.376,
    }
    assert status_line(record) == (
        "loss 6.123  above entropy 4.500  accuracy 0.125  perplexity 812  lr 1.5e-03  1234 images/s  38% of matmul peak"
    )


def test_status_line__has_what_there_is() -> None:
    assert status_line({"loss": 0.25, "lr": 1e-5, "images_per_second": 9.6}) == "loss 0.250  lr 1.0e-05  10 images/s"
