"""`mcbeit serve` with Ray: a cluster, the deployment on it, and an orderly end."""

import contextlib
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mcbeit.errors import McbeitError, RunError
from mcbeit.ray_cluster import Scale, ray_cluster
from mcbeit.serve.config import ServeConfig, api_keys, check_exposure
from mcbeit.serve.indexes import LocalIndexes
from mcbeit.serve.model import open_encoder, split_name
from mcbeit.serve.plain import listen
from mcbeit.serve.ray_environment import free_port, serve_environment
from mcbeit.stop import StopRequest
from mcbeit.temporary import temporary_folder

POLL_SECONDS = 0.1
READY_SECONDS = 120.0
ANSWER_SECONDS = 60.0  # from the start of the last replica on a cluster to the first answer
RUNNING, FAILED = "RUNNING", "DEPLOY_FAILED"  # states in the words of Ray Serve


def run_on_ray(config: ServeConfig, *, told: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError, EncoderError or VectorIndexError before Ray starts if models, keys, the address or the folder of
    indices are not as they must be, and RunError without Ray, without room for the replicas, or if the service does not
    become ready.
    """
    if importlib.util.find_spec("ray") is None:
        raise RunError("Ray is not installed: pip install 'mcbeit[ray]', or serve in one process with --plain")
    check_exposure(config, api_keys(config))
    _check_models(config)
    if config.indexes is not None and config.ray.address is None:
        LocalIndexes(Path(config.indexes)).close()
    port = config.port or free_port()
    listen(config.host, port).close()
    stop = StopRequest("requests that were accepted are answered; a second signal does not wait for it")
    with stop.listening(), _hang_ups() as hang_ups, temporary_folder("s", Path("/tmp")) as folder:
        for name, value in serve_environment(config.ray, folder).items():
            os.environ.setdefault(name, value)
        # once more: Ray has put its own handlers in place of ours
        with ray_cluster(Scale(1, 1, address=config.ray.address)) as (ray, _), stop.listening():
            _check_room(config, ray.cluster_resources())
            _check_alone()
            _serve(config, port, stop, hang_ups, told)
    told("stopped; every request that was accepted is answered")


def _check_models(config: ServeConfig) -> None:
    for model in config.models:
        open_encoder(split_name(model)[1], config)


def _check_room(config: ServeConfig, has: Mapping[str, float]) -> None:
    """Raise RunError if this machine lacks what all replicas ask for; a cluster elsewhere may grow."""
    from mcbeit.serve.deployment import replica_cpus

    each = {"CPU": replica_cpus(config.ray), "GPU": config.ray.gpus}
    missing = [name for name, count in each.items() if count * config.ray.replicas > has.get(name, 0)]
    if missing and config.ray.address is None:
        asked, found = (", ".join(f"{count.get(name, 0):g} {name}" for name in each) for count in (each, has))
        raise RunError(
            f"ray.replicas={config.ray.replicas} with {asked} each do not fit this machine, which has {found}; lower "
            "ray.replicas, ray.cpus or ray.gpus"
        )


def _check_alone() -> None:
    """Raise RunError if the cluster serves already: its service would be replaced, and be ended with this one."""
    from mcbeit.serve import deployment

    state, _ = deployment.status()
    if state != deployment.NOT_STARTED:
        raise RunError(
            f"the cluster has a service called '{deployment.APPLICATION}' ({state}); end it first, by its own command "
            f"or by `serve delete {deployment.APPLICATION}`, or load new models into it as docs/serve-cluster.md says"
        )


def _serve(
    config: ServeConfig, port: int, stop: StopRequest, hang_ups: threading.Event, told: Callable[[str], None]
) -> None:
    from mcbeit.serve import deployment

    address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
    with contextlib.ExitStack() as stack:
        stack.callback(deployment.stop, config.drain_seconds)
        deployment.start(config, port)
        _wait_until_ready(config, address, stop)
        if not stop():
            told(f"ready at {address} (routes: /docs), under Ray Serve")
        generation = 0
        while not stop():
            if hang_ups.is_set():
                hang_ups.clear()
                generation += 1
                _load_anew(config, generation, stop, told)
            time.sleep(POLL_SECONDS)


def _wait_until_ready(config: ServeConfig, address: str, stop: StopRequest) -> None:
    """Raises RunError if that fails, or takes too long on this machine; a cluster elsewhere may have to grow first."""
    from mcbeit.serve import deployment

    until = time.monotonic() + READY_SECONDS if config.ray.address is None else float("inf")
    started = None  # the last of the replicas
    while not stop() and not deployment.is_ready(address):
        (state, said), now = deployment.status(), time.monotonic()
        if state == FAILED or now > until:
            raise RunError(f"the service at {address} did not become ready ({state}): {said or 'Ray says no more'}")
        started = (started or now) if state == RUNNING else None
        if config.ray.address is not None and started is not None and now - started > ANSWER_SECONDS:
            raise RunError(
                f"all replicas run, but nothing answers at {address}: the cluster's Ray Serve may have been started "
                "with another host or port; give these, or end it by `serve shutdown`"
            )
        time.sleep(POLL_SECONDS)


def _load_anew(config: ServeConfig, generation: int, stop: StopRequest, told: Callable[[str], None]) -> None:
    """Put new replicas in the place of those there, unless what they would load cannot be served."""
    from mcbeit.serve import deployment

    try:
        _check_models(config)
    except McbeitError as error:
        told(f"SIGHUP: the models that are loaded go on, as those in the folders cannot be served: {error}")
        return
    told("SIGHUP: loading the models anew, replica by replica")
    deployment.deploy(config, generation)
    state, said = deployment.status()
    while not stop() and state not in (RUNNING, FAILED):
        time.sleep(POLL_SECONDS)
        state, said = deployment.status()
    if state == RUNNING:
        told("the models are loaded anew")
    elif state == FAILED:
        told(f"the models could not be loaded anew: {said}")


@contextlib.contextmanager
def _hang_ups() -> Iterator[threading.Event]:
    """Set by SIGHUP."""
    found = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda number, frame: found.set())
    try:
        yield found
    finally:
        signal.signal(signal.SIGHUP, before)
