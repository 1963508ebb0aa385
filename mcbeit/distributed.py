"""How a training is started: in this process, by torchrun, or by Ray Train on this machine or a cluster.

The training itself is one function that knows its `Worker` only. Ray Train places the workers, sets up the process
group and replaces them when one dies; they then go on from the newest checkpoint of the run folder, as `--resume` does.
Ray's own reports are not used: they allow one checkpoint per poll of the controller, and lose the last one with it.
"""

import os
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

import mcbeit.errors
from mcbeit.board import Board, DriverDisplay, Outcome
from mcbeit.config import dump
from mcbeit.device import choose_device
from mcbeit.errors import Interrupted, McbeitError, RunError
from mcbeit.group import Group
from mcbeit.jobs import Job, parse_job, run_job
from mcbeit.progress import Display
from mcbeit.ray_cluster import Scale, ray_cluster, worker_resources
from mcbeit.stop import StopRequest
from mcbeit.storage import beside, is_remote, remove
from mcbeit.worker import Worker

POLL_SECONDS = 0.5


def speaks() -> bool:
    """Whether this process is the one that people hear; under torchrun the first."""
    return os.environ.get("RANK", "0") == "0"


def launch(config: Job, *, resume: bool = False, scale: Scale | None = None) -> dict[str, Any]:
    """Run a job to its end; returns its summary. Under torchrun every process calls it."""
    if scale is not None:
        return _run_on_ray(config, resume, scale)
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return _run_in_group(config, resume)
    return run_job(config, resume=resume)


def _run_in_group(config: Job, resume: bool) -> dict[str, Any]:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        dist.init_process_group("nccl", device_id=choose_device())
    else:
        dist.init_process_group("gloo")
    summary = run_job(config, resume=resume, worker=Worker(Group.current()))
    dist.destroy_process_group()
    return summary


def _run_on_ray(config: Job, resume: bool, scale: Scale) -> dict[str, Any]:
    config = config.model_copy(update={"run": _absolute(config.run)})
    with ray_cluster(scale) as (ray, temporary):
        resources = worker_resources(ray, scale)
        board = ray.remote(num_cpus=0)(Board).remote()
        setting = {
            "config": yaml.safe_load(dump(config)),
            "resume": resume,
            "board": board,
            "folder": str(Path.cwd()),
        }
        place = beside(config.run, ".ray") if temporary is None else str(temporary / "train")
        stop = StopRequest()
        try:
            error = _watch(ray, board, stop, _trainer(setting, scale, resources, place).fit)
            outcome = ray.get(board.outcome.remote())
            failure = ray.get(board.failure.remote())
        finally:
            remove(place)
    match outcome:
        case ("complete", summary):
            return summary
        case ("interrupted", message):
            raise Interrupted(message, stop.signal)
        case ("failed", (str(kind), str(message))):
            raise getattr(mcbeit.errors, kind)(message)
        case ("failed", message):
            raise RunError(f"{message}; mend it, and go on with --resume ({config.run})")
    raise RunError(f"Ray Train ended without a result ({error or failure}); go on with --resume ({config.run})")


def _trainer(setting: dict[str, Any], scale: Scale, resources: dict[str, float], place: str) -> Any:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    train: Any = ray.train  # its types are those of the version before
    workers = (scale.min_workers, scale.max_workers)
    return TorchTrainer(
        _work,
        train_loop_config=setting,
        torch_config=TorchConfig(backend="nccl" if resources.get("GPU") else "gloo"),
        scaling_config=train.ScalingConfig(
            num_workers=workers if workers[0] < workers[1] else workers[0],
            use_gpu=bool(resources.get("GPU")),
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=place,
            # the board counts failures: a run that makes progress may have any number of them
            failure_config=train.FailureConfig(max_failures=-1, controller_failure_limit=3),
            logging_config=train.LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(setting: dict[str, Any]) -> None:
    """What each Ray Train worker does, again after every failure."""
    import ray

    if Path(setting["folder"]).is_dir():  # paths in the config are relative to it
        os.chdir(setting["folder"])
    board, group = setting["board"], Group.current()
    is_open, has_begun = group.first(lambda: ray.get(board.enter.remote()))
    if not is_open:
        return
    worker = Worker(
        group,
        stop=_AskBoard(board) if group.is_first else StopRequest(),
        show=lambda title, total, done: _BoardDisplay(board, title, total, done),
        began=lambda step: ray.get(board.begin.remote(step)) if group.is_first else None,
    )
    try:
        config = parse_job(setting["config"], origin="the config of the run")
        summary = run_job(config, resume=setting["resume"] or has_begun, worker=worker)
        outcome: Outcome = ("complete", summary)
    except Interrupted as stopped:
        outcome = ("interrupted", str(stopped))
    except McbeitError as error:
        ray.get(board.end.remote(("failed", (type(error).__name__, str(error)))))
        if error.is_shared or group.size == 1:
            return
        raise  # the others wait for this worker: the group has to be ended
    except Exception:
        ray.get(board.fail.remote(traceback.format_exc(limit=-3)))
        raise
    if group.is_first:
        ray.get(board.end.remote(outcome))


class _AskBoard(StopRequest):
    """Asks the board, now and then, without waiting for its answer."""

    def __init__(self, board: Any) -> None:
        super().__init__()
        self._board, self._asked_at = board, 0.0
        self._answer: Any = None

    def __call__(self) -> bool:
        import ray

        if self._answer is None and time.monotonic() - self._asked_at >= POLL_SECONDS:
            self._answer, self._asked_at = self._board.wants_stop.remote(), time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            if ray.get(self._answer):
                self.signal = signal.SIGINT
            self._answer = None
        return super().__call__()


class _BoardDisplay(Display):
    """Writes on the board what a person should see."""

    def __init__(self, board: Any, title: str, total: int, done: int) -> None:
        super().__init__(title, total, done=done)
        self._board, self._written_at = board, 0.0
        board.show.remote(title, total, done, None)

    def __enter__(self) -> "_BoardDisplay":
        return self

    def update(self, done: int, status: str | None = None) -> None:
        """So many steps are done."""
        self.done = done
        self._status = status or getattr(self, "_status", None)
        if time.monotonic() - self._written_at >= POLL_SECONDS or done == self.total:
            self._board.show.remote(self.title, self.total, done, self._status)
            self._written_at = time.monotonic()

    def note(self, message: str) -> None:
        """A line that stays."""
        self._board.note.remote(message)


def _watch(ray: Any, board: Any, stop: StopRequest, fit: Any) -> BaseException | None:
    """Show how it goes until `fit` ends, and hand on a request to stop; returns the error that it ended with."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:  # told by the main thread
            errors.append(error)

    thread, display = threading.Thread(target=run, daemon=True), DriverDisplay()
    with stop.listening():
        thread.start()
        is_told = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            display.show(ray.get(board.look.remote()))
            if stop() and not is_told:
                ray.get(board.ask_to_stop.remote())
                is_told = True
    display.show(ray.get(board.look.remote()))
    display.close()
    return errors[0] if errors else None


def _absolute(run: str) -> str:
    return run if is_remote(run) else str(Path(run).absolute())
