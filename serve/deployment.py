"""The service as one deployment of Ray Serve, that is ingress and model: nothing is sent from process to process.

`build` is what a config file of Ray Serve names: `import_path: mcbeit.serve.deployment:build`, `args:` a ServeConfig.
This is the only file that imports ray.serve.
"""

import os
from typing import Any

import httpx
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.deployment import Application

from mcbeit.machine import num_cores
from mcbeit.serve.app import build_app
from mcbeit.serve.config import KEYS_VARIABLE, RayConfig, ServeConfig
from mcbeit.serve.log import set_up_log
from mcbeit.serve.memory import keep_freed_memory
from mcbeit.serve.service import Service

APPLICATION = "mcbeit"
SPARE = 64  # requests beside those that wait for the model: health, metrics, pages
CPUS_ELSEWHERE = 2.0  # per replica, on a cluster of which this machine knows nothing
QUIET = {"log_level": "WARNING", "enable_access_log": False}
GENERATION = "generation"  # of user_config: another value loads the models anew


@serve.ingress()
class Embedder:
    """A replica: the models, and the routes over them."""

    def __init__(self, config: ServeConfig) -> None:
        keep_freed_memory()
        set_up_log(config.log_format)
        self.config = config
        self.service = Service(config)
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

    async def check_health(self) -> None:
        """Raise if the models have not given numbers for long: the replica is then replaced."""
        reason = self.service.unready_because()
        if reason is not None and not self.service.is_draining:
            raise RuntimeError(reason)


def build(args: ServeConfig) -> Application:
    """The application of a config, for `serve run` and `serve deploy`."""
    return _application(args, 0)


def _application(config: ServeConfig, generation: int) -> Application:
    cpus = replica_cpus(config.ray)
    threads = max(1, int(cpus))
    own = {"threads": config.threads or threads, "decode_threads": config.decode_threads or threads}
    deployment: Any = serve.deployment(Embedder)
    options = {**deployment_options(config, cpus), "user_config": {GENERATION: generation}}
    application: Application = deployment.options(**options).bind(config.model_copy(update=own))
    return application


def deployment_options(config: ServeConfig, cpus: float) -> dict[str, Any]:
    """What Ray Serve is told of the deployment."""
    ray, ongoing = config.ray, config.limits.waiting_items + SPARE
    options: dict[str, Any] = {
        "ray_actor_options": {
            "num_cpus": cpus,
            "num_gpus": ray.gpus,
            "runtime_env": {"env_vars": {KEYS_VARIABLE: os.environ.get(KEYS_VARIABLE, "")}},
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
    """Deploy on the cluster that this process is connected to; returns when the routes are there."""
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": config.host, "port": port, "request_timeout_s": config.limits.request_seconds + 5},
        logging_config=QUIET,
    )
    deploy(config, 0)


def deploy(config: ServeConfig, generation: int) -> None:
    """Deploy, or put new replicas, which load the models anew, in the place of those that are there, one by one."""
    application = _application(config, generation)
    serve.run(application, name=APPLICATION, route_prefix="/", logging_config=QUIET)


def stop() -> None:
    """Let replicas answer what they have accepted, and end them."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def is_ready(address: str) -> bool:
    """Whether the service answers, through everything that a client goes through."""
    try:
        return httpx.get(f"{address}/health/ready", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
