"""How a training is started: in this process, by torchrun, or by Ray Train on this machine or a cluster.

The training itself is one function that knows its `Worker` only. Ray Train places the workers, sets up the process
group and replaces them when one dies; they then go on from the newest checkpoint of the run folder, as `--resume` does.
Ray's own reports are not used: they allow one checkpoint per poll of the controller, and lose the last one with it.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import yaml

import mcbeit.errors
from mcbeit.board import Board, DriverDisplay, Outcome
from mcbeit.config import dump
from mcbeit.device import choose_device
from mcbeit.errors import ConfigError, Interrupted, McbeitError, RunError
from mcbeit.group import Group
from mcbeit.jobs import Job, parse_job, run_job
from mcbeit.machine import num_cores
from mcbeit.progress import Display
from mcbeit.stop import StopRequest
from mcbeit.worker import Worker

ENVIRONMENT = {  # read when ray is imported, by all of its processes
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing phones home
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
}
MAX_SOCKET_FOLDER = 40  # characters of a temporary folder below which Ray's socket names still fit
OBJECT_STORE_BYTES = 256 * 2**20
POLL_SECONDS = 0.5
MAX_WAIT_SECONDS = 10.0  # for the end of Ray's processes


class Scale(NamedTuple):
    """How many workers a training has under Ray Train, and where."""

    min_workers: int
    max_workers: int  # more than `min_workers`: as many as there is room for, also while it runs
    gpus_per_worker: float | None = None  # None: one if the cluster has GPUs
    address: str | None = None  # of a cluster, or 'auto'; None: a cluster of this machine, for this run

    @classmethod
    def parse(cls, workers: str, gpus_per_worker: float | None, address: str | None) -> "Scale":
        """From `N` or `MIN-MAX`. Raises ConfigError."""
        low, dash, high = workers.partition("-")
        try:
            bounds = int(low), int(high if dash else low)
        except ValueError:
            bounds = 0, 0
        if not 1 <= bounds[0] <= bounds[1]:
            raise ConfigError(f"--workers must be a number, or MIN-MAX for an elastic run, found '{workers}'")
        return cls(*bounds, gpus_per_worker, address)


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
    with _cluster(scale) as (ray, temporary):
        resources = _resources(ray, scale)
        board = ray.remote(num_cpus=0)(Board).remote()
        setting = {
            "config": yaml.safe_load(dump(config)),
            "resume": resume,
            "board": board,
            "folder": str(Path.cwd()),
        }
        place = temporary / "train" if scale.address is None else Path(f"{config.run}.ray")
        try:
            error = _watch(ray, board, _trainer(setting, scale, resources, place).fit)
            outcome = ray.get(board.outcome.remote())
            failure = ray.get(board.failure.remote())
        finally:
            shutil.rmtree(place, ignore_errors=True)
    match outcome:
        case ("complete", summary):
            return summary
        case ("interrupted", message):
            raise Interrupted(message, signal.SIGINT)
        case ("failed", (str(kind), str(message))):
            raise getattr(mcbeit.errors, kind)(message)
        case ("failed", message):
            raise RunError(f"{message}; mend it, and go on with --resume ({config.run})")
    raise RunError(f"Ray Train ended without a result ({error or failure}); go on with --resume ({config.run})")


def _trainer(setting: dict[str, Any], scale: Scale, resources: dict[str, float], place: Path) -> Any:
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
            name=Path(setting["config"]["run"]).name,
            storage_path=str(place),
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


def _watch(ray: Any, board: Any, fit: Any) -> BaseException | None:
    """Show how it goes until `fit` ends, and hand on a request to stop; returns the error that it ended with."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:  # told by the main thread
            errors.append(error)

    thread, stop, display = threading.Thread(target=run, daemon=True), StopRequest(), DriverDisplay()
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


@contextmanager
def _cluster(scale: Scale) -> Iterator[tuple[Any, Path]]:
    """Ray, connected to the cluster at the address, or to one of its own that goes with it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    temporary = _temporary_folder()
    try:
        if scale.address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
        import ray

        if scale.address is not None:
            _connect(ray, scale.address)
        else:
            ray.init(
                address="local",
                num_cpus=max(1, int(num_cores())),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=True,  # without it Train's clean-up complains every second
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(temporary),
            )
        try:
            yield ray, temporary
        finally:
            own = _descendants(os.getpid()) if scale.address is None else []
            ray.shutdown()
            _wait_for_end(own)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    """The processes below one, where the system tells (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(pid, []))
    for inner in found:
        found += children.get(inner, [])
    return found


def _wait_for_end(pids: list[int]) -> None:
    """Wait for processes of Ray that end by themselves, and end those that do not."""
    until = time.monotonic() + MAX_WAIT_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(
            f"there is no Ray cluster at --address {address} ({error}); start one with `ray start --head`, or leave "
            "--address out to use this machine"
        ) from error


def _resources(ray: Any, scale: Scale) -> dict[str, float]:
    """What each worker gets. Raises RunError if the cluster does not have it for all of them."""
    has = ray.cluster_resources()
    gpus = scale.gpus_per_worker if scale.gpus_per_worker is not None else float(has.get("GPU", 0) > 0)
    own = scale.address is None
    wanted = {"CPU": float(max(1, has.get("CPU", 0) // scale.min_workers)) if own else 1.0}
    if gpus:
        wanted["GPU"] = gpus
    missing = [name for name, count in wanted.items() if count * scale.min_workers > has.get(name, 0)]
    if missing:
        asked = ", ".join(f"{count:g} {name}" for name, count in wanted.items())
        found = ", ".join(f"{has.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        most = int(min(has.get(name, 0) // count for name, count in wanted.items()))
        advice = f"use --workers {most}" if most else "use --gpus-per-worker 0, or another cluster"
        raise RunError(
            f"{scale.min_workers} workers with {asked} each do not fit "
            f"{'this machine' if own else 'the cluster'}, which has {found}; {advice}"
        )
    return wanted


def _absolute(run: str) -> str:
    return run if "://" in run else str(Path(run).absolute())


def _temporary_folder() -> Path:
    """A folder for Ray's session, named after this process; those of processes that were killed are removed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > MAX_SOCKET_FOLDER - len("/mcbeit-ray-4194304-12345678"):
        parent = Path("/tmp")
    for left in parent.glob("mcbeit-ray-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"mcbeit-ray-{os.getpid()}-", dir=parent))
