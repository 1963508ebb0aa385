"""The service as one deployment of Ray Serve, that is ingress and model: nothing is sent from process to process.

`build` is what a config file of Ray Serve names: `import_path: mcbeit.serve.deployment:build`, `args:` a ServeConfig.
This is the only file that imports ray.serve.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import BackpressureConfig
from ray.serve.deployment import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mcbeit.machine import num_cores
from mcbeit.serve.app import build_app
from mcbeit.serve.config import KEYS_VARIABLE, RayConfig, ServeConfig
from mcbeit.serve.indexes import LocalIndexes
from mcbeit.serve.log import set_up_log
from mcbeit.serve.memory import keep_freed_memory
from mcbeit.serve.service import Service
from mcbeit.serve.store_items import StoreError

LOGGER = logging.getLogger("mcbeit.serve")
APPLICATION = "mcbeit"
NOT_STARTED = "NOT_STARTED"  # there is no such application
SPARE = 64  # requests beside those that wait for the model: health, metrics, pages
CPUS_ELSEWHERE = 2.0  # per replica, on a cluster of which this machine knows nothing
LOOK_BACK = 11.0, 30.0  # seconds of which the mean is taken: the least that Ray allows, and its default
DELETE_SECONDS = 20.0  # for what Ray does around the drain
QUIET = {"log_level": "WARNING", "enable_access_log": False}
INDEX_PATIENCE_SECONDS = 30.0  # that a writer waits for one before it to let the folder go
GENERATION = "generation"  # of user_config: another value loads the models anew


@serve.ingress()
class Embedder:
    """A replica: the models, and the routes over them."""

    def __init__(self, config: ServeConfig, writer: DeploymentHandle[Any] | None = None) -> None:
        keep_freed_memory()
        set_up_log(config.log_format)
        self.config, self._writer = config, writer
        self.service = Service(config, ask_indexes=None if writer is None else self._ask_indexes)
        self.service.is_replica = True
        self._generation: Any = None
        self._is_new = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray Serve asks for it, and runs its lifespan."""
        return build_app(self.config, self.service)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load all models from their folders anew if `generation` is another; requests go on meanwhile."""
        generation = user_config.get(GENERATION)
        if not self._is_new and generation != self._generation:
            await self.service.reload_all()
        self._generation, self._is_new = generation, False

    async def _ask_indexes(self, method: str, arguments: Sequence[Any]) -> Any:
        assert self._writer is not None
        try:
            return await self._writer.ask.remote(method, arguments)
        except (RayError, RayServeException):
            LOGGER.exception("the process that has the indices does not answer")
            return StoreError("failed", "the process that has the indices does not answer; ask again")

    async def check_health(self) -> None:
        """Raise if the models have not given numbers for long: the replica is then replaced."""
        reason = self.service.unready_because()
        if reason is not None and not self.service.is_draining:
            raise RuntimeError(reason)


class IndexWriter:
    """The one process that has the folder of indices; the replicas ask it."""

    def __init__(self, path: Path) -> None:
        self._indexes = LocalIndexes(path, patience_seconds=INDEX_PATIENCE_SECONDS)

    async def ask(self, method: str, arguments: Sequence[Any]) -> Any:
        """See `LocalIndexes.ask`."""
        return await self._indexes.ask(method, arguments)


def build(args: ServeConfig) -> Application:
    """The application of a config, for `serve run` and `serve deploy`."""
    return _application(args, 0)


def _application(config: ServeConfig, generation: int) -> Application:
    cpus = replica_cpus(config.ray)
    threads = max(1, int(cpus))
    own = {"threads": config.threads or threads, "decode_threads": config.decode_threads or threads}
    deployment: Any = serve.deployment(Embedder)
    options = {**deployment_options(config, cpus), "user_config": {GENERATION: generation}}
    bound = [config.model_copy(update=own), *_writers(config)]
    application: Application = deployment.options(**options).bind(*bound)
    return application


def _writers(config: ServeConfig) -> list[Application]:
    if config.indexes is None:
        return []
    resource = config.ray.index_resource
    actor = {"num_cpus": 0, "resources": {} if resource is None else {resource: 0.001}}
    options = {"num_replicas": 1, "max_ongoing_requests": config.limits.waiting_items + SPARE,
               "ray_actor_options": actor, "graceful_shutdown_timeout_s": config.drain_seconds}  # fmt: skip
    deployment: Any = serve.deployment(IndexWriter)
    return [deployment.options(**options).bind(Path(config.indexes).absolute())]


def deployment_options(config: ServeConfig, cpus: float) -> dict[str, Any]:
    """What Ray Serve is told of the deployment."""
    ray, ongoing = config.ray, config.limits.waiting_items + SPARE
    keys = os.environ.get(KEYS_VARIABLE)  # nothing is passed on without any: the machine of a replica may have its own
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": cpus,
            "num_gpus": ray.gpus,
            "runtime_env": {"env_vars": {KEYS_VARIABLE: keys} if keys else {}},
        },
        # the service refuses by itself what it cannot do in time, in the manner that each client reads
        "max_ongoing_requests": ongoing,
        "max_queued_requests": ongoing,
        "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": config.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    if ray.max_replicas is None:
        return {**options, "num_replicas": ray.replicas}
    scaling = {
        "min_replicas": ray.replicas, "max_replicas": ray.max_replicas, "target_ongoing_requests": ray.target_requests,
        "upscale_delay_s": ray.upscale_seconds, "downscale_delay_s": ray.downscale_seconds,
        "look_back_period_s": max(LOOK_BACK[0], min(ray.upscale_seconds, LOOK_BACK[1])),
    }  # fmt: skip
    return {**options, "autoscaling_config": scaling}


def replica_cpus(config: RayConfig) -> float:
    """Cores of one replica."""
    if config.cpus is not None:
        return config.cpus
    if config.address is not None:
        return CPUS_ELSEWHERE
    return max(1.0, num_cores() // (config.max_replicas or config.replicas))


def start(config: ServeConfig, port: int) -> None:
    """Deploy on the cluster that this process is connected to; `status` tells what becomes of it."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": port, "request_timeout_s": config.limits.request_seconds + 5},
        logging_config=QUIET,
    )
    deploy(config, 0)


def deploy(config: ServeConfig, generation: int) -> None:
    """Ask for the replicas, or for new ones, which load the models anew, in the place of those there, one by one."""
    application = _application(config, generation)
    target = serve.RunTarget(application, name=APPLICATION, route_prefix="/", logging_config=QUIET)
    serve.run_many([target], wait_for_applications_running=False)


def status() -> tuple[str, str]:
    """RUNNING when all replicas are there, DEPLOY_FAILED, or another word of Ray; and the end of what Ray says."""
    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return NOT_STARTED, ""
    told = [application.message, *(deployment.message for deployment in application.deployments.values())]
    ends = [text.strip().splitlines()[-1] for text in told if text.strip()]
    return str(application.status.value), " ".join(dict.fromkeys(ends))


def stop(seconds: float) -> None:
    """Let replicas answer what they have accepted, for so long, and end them; other applications stay.

    `serve.shutdown` alone would end the proxy first, and cut off every request that goes through it.
    """
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION, _blocking=False)
        until = time.monotonic() + seconds + DELETE_SECONDS
        while APPLICATION in serve.status().applications and time.monotonic() < until:
            time.sleep(0.1)
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


def is_ready(address: str) -> bool:
    """Whether the service answers, through everything that a client goes through."""
    try:
        return httpx.get(f"{address}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
