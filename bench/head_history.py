"""What linear heads make of the test images epoch by epoch, kept with the training so that it can be gone on with."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from mcbeit.atomic import write_bytes
from mcbeit.bench.head_training import HeadTraining
from mcbeit.bench.linear_heads import Batch, HeadAnswers
from mcbeit.errors import Interrupted
from mcbeit.stop import StopRequest


class History:
    """Top-1 of every head after every epoch, and the answers after two of them: the last, and that of the best head."""

    def __init__(self) -> None:
        self.top1: list[list[float]] = []  # by epoch and head
        self.last: HeadAnswers | None = None
        self.best: HeadAnswers | None = None

    def add(self, answers: HeadAnswers) -> None:
        """What the heads say after one more epoch."""
        scores = answers.top1.mean(axis=1).tolist()
        if self.best is None or max(scores) > max(map(max, self.top1)):
            self.best = answers
        self.last = answers
        self.top1.append(scores)

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a file."""
        assert self.last is not None
        assert self.best is not None
        answers = {"last": self.last, "best": self.best}
        return {"top1": self.top1, **{name: list(map(torch.from_numpy, parts)) for name, parts in answers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        self.top1 = state["top1"]
        self.last, self.best = (HeadAnswers(*(part.numpy() for part in state[name])) for name in ("last", "best"))


def train_and_ask(
    training: HeadTraining,
    batches: Callable[[int], Iterable[Batch]],
    ask: Callable[[], HeadAnswers],
    path: Path,
    stop: StopRequest,
) -> History:
    """Train, and `ask` after every epoch. What is kept at `path` is gone on with after its last epoch.

    Raises Interrupted after the epoch at which `stop` was asked for.
    """
    history = History()
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location="cpu")
        training.load_state_dict(saved["training"])
        history.load_state_dict(saved["history"])

    def on_epoch(losses: Float64[np.ndarray, " head"]) -> None:
        history.add(ask())
        buffer = io.BytesIO()
        torch.save({"training": training.state_dict(), "history": history.state_dict()}, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
        if stop() and training.epoch < training.recipe.epochs:
            raise Interrupted(
                f"stopped after {training.epoch} of {training.recipe.epochs} epochs of the linear probe, which are "
                "kept; go on with the same command and --resume",
                stop.signal,
            )

    with stop.listening():
        training.run(batches, on_epoch)
    return history
