"""What a classifier was worth after each epoch: the last one and the best one, kept apart and named as such."""

import io
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from mcbeit.atomic import write_bytes
from mcbeit.evaluation import Judgement
from mcbeit.supervised import JudgedEpoch

LAST: Final = "last"  # by what an epoch was chosen
BY_TEST: Final = "best on the test images"
BY_HELD_OUT: Final = "held-out images"
PREDICTIONS = {"last": "predictions.npy", "best": "predictions-best.npy"}  # in the run folder, of the test images


class Epoch(NamedTuple):
    """A classifier after some epochs, judged."""

    number: float
    test: Judgement
    held_out: Judgement | None

    @property
    def criterion(self) -> tuple[str, float]:
        """The metric that the best epoch is chosen by, and its value."""
        return ("top1", self.test.top1) if self.held_out is None else ("held_out_top1", self.held_out.top1)

    @property
    def selection(self) -> str:
        """By what the best epoch is chosen, in words."""
        return BY_TEST if self.held_out is None else BY_HELD_OUT

    def record(self) -> dict[str, float]:
        """For a line of measurements."""
        found = {"top1": self.test.top1, "test_loss": self.test.loss}
        if self.test.top5 is not None:
            found["top5"] = self.test.top5
        if self.held_out is not None:
            found["held_out_top1"] = self.held_out.top1
        return found

    def describe(self) -> str:
        """For a person."""
        count, unread = len(self.test.predicted), self.test.num_unreadable
        parts = [f"top-1 {self.test.top1:.4f}"]
        if self.test.top5 is not None:
            parts.append(f"top-5 {self.test.top5:.4f}")
        parts.append(f"loss {self.test.loss:.4f} on {count} test images")
        if unread:
            parts.append(f"{unread} unreadable ones left out")
        if self.held_out is not None:
            parts.append(f"top-1 {self.held_out.top1:.4f} on {len(self.held_out.predicted)} held-out ones")
        return f"epoch {self.number:.3g}: {', '.join(parts)}"


def take_note(numbers: dict[str, Any], epoch: JudgedEpoch) -> bool:
    """Keep an epoch in `numbers` as the last one, and as the best one if it is; returns whether it is."""
    told = {"epoch": epoch.number, **epoch.record()}
    metric, value = epoch.criterion
    best = numbers.get("judged", {}).get("best")
    is_best = best is None or value > best[metric]
    numbers["judged"] = {
        "last": {**told, "selection": LAST},
        "best": {**told, "selection": epoch.selection} if is_best else best,
    }
    return is_best


def keep_predictions(run: Path, epoch: Epoch, *, is_best: bool) -> None:
    """Write which class each test image was taken for: as the last ones, and as the best ones if they are."""
    buffer = io.BytesIO()
    np.save(buffer, epoch.test.predicted)
    for which in ("last", "best") if is_best else ("last",):
        write_bytes(run / PREDICTIONS[which], buffer.getvalue())


def read_predictions(run: Path, which: str) -> np.ndarray:
    """The class that each test image was taken for, -1 where one could not be read; `which` is last or best."""
    found: np.ndarray = np.load(run / PREDICTIONS[which])
    return found
