"""Ray for one training: a cluster of this machine that goes with it, or one that is there already."""

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mcbeit.errors import ConfigError, RunError
from mcbeit.machine import num_cores
from mcbeit.temporary import temporary_folder

ENVIRONMENT = {  # read when ray is imported, by all of its processes
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing phones home
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
}
MAX_PARENT = 12  # characters of a folder below which the names of Ray's sockets still fit
OBJECT_STORE_BYTES = 256 * 2**20
CONNECT_SECONDS = 10.0
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


@contextmanager
def ray_cluster(scale: Scale) -> Iterator[tuple[Any, Path | None]]:
    """Ray, connected to the cluster at the address, or to one of its own that goes with it, and the folder of that."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("ray") is None:
        raise RunError("several workers need Ray, which is not installed: pip install 'mcbeit[ray]'")
    with contextlib.ExitStack() as stack:
        if scale.address is not None:
            ray = _connect(scale.address)
            stack.callback(ray.shutdown)
            yield ray, None
        else:
            temporary = stack.enter_context(temporary_folder("ray", _session_parent()))
            yield stack.enter_context(_own_cluster(temporary)), temporary


@contextmanager
def _own_cluster(temporary: Path) -> Iterator[Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    import ray

    before = set(descendants(os.getpid()))
    try:
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
        yield ray
    finally:
        own = set(descendants(os.getpid())) - before
        ray.shutdown()
        end(own)


def descendants(pid: int) -> list[int]:
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


def end(pids: set[int], *, patience_seconds: float = MAX_WAIT_SECONDS) -> None:
    """Wait for processes that end by themselves, and kill those that do not."""
    until = time.monotonic() + patience_seconds
    while (pids := {pid for pid in pids if Path(f"/proc/{pid}").exists()}) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _connect(address: str) -> Any:
    import ray

    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"there is no Ray cluster at --address {address} ({error}); start one with `ray start --head`, or leave "
            "--address out to use this machine"
        ) from error
    return ray


def worker_resources(ray: Any, scale: Scale) -> dict[str, float]:
    """What each worker gets. Raises RunError if the cluster does not have it for all of them."""
    has = ray.cluster_resources()
    gpus = scale.gpus_per_worker if scale.gpus_per_worker is not None else float(has.get("GPU", 0) > 0)
    own = scale.address is None
    wanted = {"CPU": float(max(1, has.get("CPU", 0) // scale.max_workers)) if own else 1.0}
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


def _session_parent() -> Path:
    """Where Ray's session may lie: its sockets have long names below it."""
    parent = Path(tempfile.gettempdir())
    return parent if len(str(parent)) <= MAX_PARENT else Path("/tmp")
