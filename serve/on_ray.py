"""`mcbeit serve` with Ray: a cluster, the deployment on it, and an orderly end."""

import contextlib
import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mcbeit.errors import ConfigError, RunError
from mcbeit.ray_cluster import Scale, ray_cluster
from mcbeit.serve.config import ServeConfig, api_keys, check_exposure
from mcbeit.serve.model import open_encoder, split_name
from mcbeit.serve.plain import listen
from mcbeit.serve.ray_environment import free_port, serve_environment
from mcbeit.stop import StopRequest
from mcbeit.temporary import temporary_folder

POLL_SECONDS = 0.1
READY_SECONDS = 120.0


def run_on_ray(config: ServeConfig, *, told: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises ConfigError or EncoderError before Ray starts if models, keys or the address are not as they must be, and
    RunError without Ray or if the service does not become ready.
    """
    if importlib.util.find_spec("ray") is None:
        raise RunError("Ray is not installed: pip install 'mcbeit[ray]', or serve in one process with --plain")
    check_exposure(config, api_keys(config))
    for model in config.models:
        open_encoder(split_name(model)[1], config)
    port = config.port or free_port()
    listen(config.host, port).close()
    stop = StopRequest("requests that were accepted are answered; a second signal does not wait for it")
    with stop.listening(), temporary_folder("s", Path("/tmp")) as folder:
        for name, value in serve_environment(config.ray, folder).items():
            os.environ.setdefault(name, value)
        # once more: Ray has put its own handlers in place of ours
        with ray_cluster(Scale(1, 1, address=config.ray.address)), stop.listening():
            _serve(config, port, stop, told)
    told("stopped; every request that was accepted is answered")


def _serve(config: ServeConfig, port: int, stop: StopRequest, told: Callable[[str], None]) -> None:
    from mcbeit.serve import deployment

    address = f"http://{f'[{config.host}]' if ':' in config.host else config.host}:{port}"
    with contextlib.ExitStack() as stack:
        stack.callback(deployment.stop)
        deployment.start(config, port)
        until = time.monotonic() + READY_SECONDS
        while not stop() and not deployment.is_ready(address):
            if time.monotonic() > until:
                raise ConfigError(f"the service at {address} did not become ready within {READY_SECONDS:g} s")
            time.sleep(POLL_SECONDS)
        if not stop():
            told(f"ready at {address} (routes: /docs), under Ray Serve")
        generation = 0
        with _hang_ups() as hang_ups:
            while not stop():
                if hang_ups.is_set():
                    hang_ups.clear()
                    generation += 1
                    told("SIGHUP: loading the models anew, replica by replica")
                    deployment.deploy(config, generation)
                    told("the models are loaded anew")
                time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _hang_ups() -> Iterator[threading.Event]:
    """Set by SIGHUP."""
    found = threading.Event()
    before = signal.signal(signal.SIGHUP, lambda number, frame: found.set())
    try:
        yield found
    finally:
        signal.signal(signal.SIGHUP, before)
