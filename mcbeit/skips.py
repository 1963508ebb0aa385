"""Steps that are skipped because the loss or the gradient is not finite; too many in a row end the run."""

from typing import Any

from mcbeit.agreement import Told
from mcbeit.errors import RunError


class SkippedSteps:
    """Counts them; the same in all workers. `limit` in a row are too many; `mcbeit replay` repeats one if it can."""

    def __init__(self, *, limit: int, in_a_row: int = 0, can_replay: bool) -> None:
        self.limit, self.in_a_row, self.can_replay = limit, in_a_row, can_replay

    def count(self, told: Told) -> None:
        """Take note of a step."""
        self.in_a_row = self.in_a_row + 1 if told.skipped else 0

    @property
    def are_too_many(self) -> bool:
        """Whether the run has to end."""
        return self.in_a_row >= self.limit

    def error(self, run: str, told: Told) -> RunError:
        """What to raise then."""
        look = (
            f"See what happens in one: mcbeit replay {run} --step {told.step}. Then lower"
            if self.can_replay
            else "Lower"
        )
        error = RunError(
            f"step {told.step}: the loss is {told.loss:g} and the gradient norm {told.gradient_norm:g}, "
            f"{self.in_a_row} times in a row. These steps were skipped, the model of before is saved. {look} optim.lr, "
            "set optim.clip_grad, or use compute.precision=fp32, in another run or from an earlier checkpoint"
        )
        error.is_shared = True
        return error


def count_in_a_row(records: list[dict[str, Any]], step: int) -> int:
    """How many skipped steps end just before `step`."""
    skipped, count = {record["step"] for record in records}, 0
    while step - 1 - count in skipped:
        count += 1
    return count
