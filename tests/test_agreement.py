import math

import torch

from mcbeit.agreement import Agreement, Flags, agree
from mcbeit.group import ALONE
from mcbeit.meter import StepResult

CPU = torch.device("cpu")


def result(loss: float, flags: Flags = Flags(), norm: float | None = 1.0) -> StepResult:  # noqa: B008
    verdict = agree(ALONE, torch.tensor(loss), flags)
    gradient_norm = None if norm is None else torch.tensor(norm)
    return StepResult(verdict.loss, gradient_norm, {}, verdict.is_bad > 0, verdict.flags)


def test_agreement__what_a_step_says_is_heard_at_once_on_a_cpu() -> None:
    agreement = Agreement(CPU)
    agreement.post(7, result(2.5, Flags(has_corrupt=True)))
    (told,) = agreement.read(up_to_now=False)
    assert (told.step, told.loss, told.gradient_norm) == (7, 2.5, 1.0)
    assert (told.skipped, told.wants_stop, told.has_corrupt) == (False, False, True)
    assert list(agreement.read(up_to_now=True)) == []


def test_agreement__a_loss_that_is_not_finite_is_bad() -> None:
    agreement = Agreement(CPU)
    for step, loss in enumerate((1.0, math.nan, math.inf)):
        agreement.post(step, result(loss))
    assert [told.skipped for told in agreement.read()] == [False, True, True]


def test_agreement__where_reading_would_wait_it_is_late_and_in_order() -> None:
    agreement = Agreement(CPU)
    agreement.delay = 2  # as on a GPU
    heard = []
    for step in range(5):
        agreement.post(step, result(1.0, Flags(wants_stop=step == 1)))
        heard.append([told.step for told in agreement.read()])
    assert heard == [[], [], [0], [1], [2]]
    assert [told.step for told in agreement.read(up_to_now=True)] == [3, 4]
