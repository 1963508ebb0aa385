"""What a run watches beside learning: images that cannot be read, steps that are skipped, requests to stop."""

from collections.abc import Callable

from mcbeit.agreement import Agreement, Flags, Told
from mcbeit.checkpoint import Checkpoint
from mcbeit.corrupt import CorruptImages
from mcbeit.data import Batch, Corrupt, DataConfig, Key, check_readable
from mcbeit.meter import StepResult
from mcbeit.progress import Display
from mcbeit.runfolder import RunFolder, RunState, writing
from mcbeit.skips import SkippedSteps, count_in_a_row
from mcbeit.sources import ImageSource
from mcbeit.worker import Worker


class Watch:
    """One for each worker. What it decides, all of them decide at the same step."""

    def __init__(
        self,
        run: RunFolder,
        source: ImageSource,
        state: RunState,
        worker: Worker,
        *,
        data: DataConfig,
        max_skipped: int,
        keys_of: Callable[[int], list[Key]],
        can_replay: bool = False,  # whether `mcbeit replay` knows this job
    ) -> None:
        self.run, self.source, self.state, self.worker, self.keys_of = run, source, state, worker, keys_of
        group, device = worker.group, next(state.model.parameters()).device
        self.corrupt: CorruptImages | None = None
        group.first(lambda: self._begin_list(data.max_corrupt_fraction))
        in_a_row = group.first(lambda: count_in_a_row(run.skipped_steps(), state.step))
        self.skips = SkippedSteps(limit=max_skipped, in_a_row=in_a_row, can_replay=can_replay)
        self.wants_stop = False
        self._agreement = Agreement(device)
        self._unreported: list[Corrupt] = []
        self._saved_at: int | None = None

    @property
    def num_corrupt(self) -> int:
        """Images found unreadable so far, in the first worker."""
        return 0 if self.corrupt is None else len(self.corrupt)

    def flags(self, batch: Batch) -> Flags:
        """What this worker has to say at the step of this batch. Raises DataError if the batch gave up."""
        if not batch.views:
            self._give_up(batch)
        self._unreported += batch.corrupt
        return Flags(wants_stop=self.worker.stop(), has_corrupt=bool(batch.corrupt))

    def hear(self, step: int, result: StepResult, display: Display, *, up_to_now: bool) -> None:
        """Act on what the workers have said of this step, or of earlier ones; `up_to_now` waits for the device.

        Raises DataError if too many images are unreadable, RunError if too many steps in a row were skipped.
        """
        self._agreement.post(step, result)
        has_corrupt = False
        for told in self._agreement.read(up_to_now=up_to_now):
            self.wants_stop |= told.wants_stop
            has_corrupt |= told.has_corrupt
            self.skips.count(told)
            if told.skipped:
                self._record_skip(told, display)
        if has_corrupt:
            self._report_corrupt()

    def save(self) -> None:
        """Write a checkpoint of the finished steps, unless there is one."""
        if self._saved_at != self.state.step:
            checkpoint = self.state.checkpoint()
            self.worker.group.first(lambda: self._keep(checkpoint))
            self._saved_at = self.state.step

    def stop_if_asked(self, run: str) -> None:
        """After a request to stop, save the finished steps and raise Interrupted."""
        if self.wants_stop:
            self.save()
            raise self.worker.interrupted(run, self.state.step)

    def _begin_list(self, max_fraction: float) -> None:
        """The list of unreadable images. Raises DataError if damaged shards have lost too many already."""
        self.corrupt = CorruptImages(self.source, self.run.corrupt_file, max_fraction=max_fraction)

    def _keep(self, checkpoint: Checkpoint) -> None:
        self.run.save(checkpoint)
        self.worker.keep()

    def mark_best(self, metric: str, value: float) -> None:
        """Note that the checkpoint just saved is the best so far."""
        self.worker.group.first(lambda: self.run.mark_best(self.state.step, metric, value))

    def tell_corrupt(self, display: Display) -> None:
        """A last word on the images that could not be read, if there are any."""
        if self.corrupt:
            display.note(self.corrupt.describe())

    def _record_skip(self, told: Told, display: Display) -> None:
        keys = self.keys_of(told.step)
        self.worker.group.first(
            lambda: self.run.record_skip(
                {
                    "step": told.step,
                    "loss": told.loss,
                    "gradient_norm": told.gradient_norm,
                    "epoch": keys[0].epoch,
                    "images": [self.source.name(key.image) for key in keys],
                }
            )
        )
        display.warn(
            f"step {told.step} was skipped (its loss is {told.loss:g}, its gradient norm {told.gradient_norm:g}); "
            f"{self.run.skipped_file} lists such steps and their images"
        )
        if self.skips.are_too_many:
            self.save()
            raise self.skips.error(str(self.run.path), told)

    def _report_corrupt(self) -> None:
        group = self.worker.group
        found = [bad for part in group.gather(self._unreported) for bad in part]
        self._unreported = []
        group.first(lambda: self._list(found))

    def _list(self, found: list[Corrupt]) -> None:
        assert self.corrupt is not None
        with writing("the list of unreadable images", self.run.path):
            self.corrupt.add(found)

    def _give_up(self, batch: Batch) -> None:
        if self.corrupt is not None:
            self._list(batch.corrupt)
        check_readable(batch, self.source)
