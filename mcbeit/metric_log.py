"""Where the measurements of a run go: metrics.jsonl and, if asked for, TensorBoard."""

from collections.abc import Mapping

from mcbeit.group import ALONE, Group
from mcbeit.runfolder import LogConfig, RunFolder


class MetricLog:
    """Where measurements go: metrics.jsonl and, if asked for, TensorBoard. A context manager."""

    def __init__(self, run: RunFolder, config: LogConfig, group: Group = ALONE) -> None:
        self.run, self.is_silent, self._board = run, not group.is_first, None
        if config.tensorboard and not self.is_silent:
            from torch.utils.tensorboard import SummaryWriter

            # a resumed run takes back what it will write again
            last = max((record["step"] for record in run.records()), default=-1)
            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=last + 1)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, record: Mapping[str, float | int]) -> None:
        """Add one line of measurements; `step` is the step that it belongs to. Only the first worker's is kept."""
        if self.is_silent:
            return
        self.run.append(record)
        if self._board is not None:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(record["step"]))
