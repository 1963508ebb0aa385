"""What Ray Serve is told of the service; no cluster is started here."""

import socket
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from serving import serve_config

from mcbeit.errors import ConfigError, EncoderError, RunError
from mcbeit.machine import num_cores
from mcbeit.serve import on_ray
from mcbeit.serve.config import KEYS_VARIABLE
from mcbeit.serve.on_ray import _check_alone, _check_room, _wait_until_ready, run_on_ray
from mcbeit.serve.ray_environment import free_port, serve_environment
from mcbeit.stop import StopRequest


@pytest.fixture(scope="module")
def deployment() -> ModuleType:
    """mcbeit.serve.deployment; importing Ray Serve warns of what it uses itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mcbeit.serve import deployment
    return deployment


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


def options_of(deployment: ModuleType, **options: Any) -> dict[str, Any]:
    config = serve_config(**options)
    return deployment.deployment_options(config, deployment.replica_cpus(config.ray))


# the deployment


def test_deployment_options__so_many_replicas(deployment: ModuleType) -> None:
    options = options_of(deployment, ray={"replicas": 3, "cpus": 1.5, "gpus": 0.5}, drain_seconds=12)
    assert options["num_replicas"] == 3
    assert "autoscaling_config" not in options
    assert options["ray_actor_options"]["num_cpus"] == 1.5
    assert options["ray_actor_options"]["num_gpus"] == 0.5
    assert options["graceful_shutdown_timeout_s"] == 12


def test_deployment_options__between_so_many_replicas(deployment: ModuleType) -> None:
    ray = {"replicas": 2, "max_replicas": 5, "target_requests": 3, "upscale_seconds": 4, "downscale_seconds": 60}
    options = options_of(deployment, ray=ray)
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 3, "upscale_delay_s": 4,
        "downscale_delay_s": 60, "look_back_period_s": 11,
    }  # fmt: skip


@pytest.mark.parametrize(("upscale_seconds", "look_back"), [(0, 11), (20, 20), (300, 30)])
def test_deployment_options__the_mean_is_taken_over_no_longer_than_the_delay(
    deployment: ModuleType, upscale_seconds: float, look_back: float
) -> None:
    options = options_of(deployment, ray={"max_replicas": 2, "upscale_seconds": upscale_seconds})
    assert options["autoscaling_config"]["look_back_period_s"] == look_back


def test_deployment_options__the_service_refuses_before_ray_does(deployment: ModuleType) -> None:
    options = options_of(deployment, limits={"waiting_items": 100})
    assert options["max_ongoing_requests"] > 100
    assert options["max_queued_requests"] > 100


def test_deployment_options__keys_go_along_and_none_do_not_hide_those_there(
    deployment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def variables() -> dict[str, str]:
        return options_of(deployment)["ray_actor_options"]["runtime_env"]["env_vars"]

    assert variables() == {}
    monkeypatch.setenv(KEYS_VARIABLE, "one,two")
    assert variables() == {KEYS_VARIABLE: "one,two"}


@pytest.mark.parametrize(
    ("ray", "cpus"),
    [
        ({"cpus": 3}, 3),
        ({"cpus": 0.5, "replicas": 4}, 0.5),
        ({}, max(1, num_cores() // 1)),
        ({"replicas": 10_000}, 1),
        ({"max_replicas": 10_000}, 1),
        ({"address": "auto"}, 2),
    ],
)
def test_replica_cpus__the_cores_are_shared_out(deployment: ModuleType, ray: dict[str, Any], cpus: float) -> None:
    assert deployment.replica_cpus(serve_config(ray=ray).ray) == cpus


def test_build__threads_are_those_that_a_replica_has(deployment: ModuleType) -> None:
    bound = deployment.build(serve_config(ray={"cpus": 3, "replicas": 2}))._bound_deployment
    (config,) = bound.init_args
    assert (config.threads, config.decode_threads) == (3, 3)
    assert (bound.name, bound.num_replicas, bound.user_config) == ("Embedder", 2, {"generation": 0})
    (config,) = deployment.build(serve_config(ray={"cpus": 3}, threads=1, decode_threads=8))._bound_deployment.init_args
    assert (config.threads, config.decode_threads) == (1, 8)


def test_build__takes_what_a_config_file_says(deployment: ModuleType) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built

    args = {"models": ["fake"], "ray": {"max_replicas": 2}, "limits": {"items": 8}}
    (config,) = built(deployment.build, args)._bound_deployment.init_args
    assert (config.limits.items, config.ray.max_replicas) == (8, 2)
    with pytest.raises(ValueError, match="itmes"):
        built(deployment.build, {"models": ["fake"], "limits": {"itmes": 8}})


# what is refused before Ray starts


@pytest.mark.parametrize(
    ("ray", "told"),
    [
        ({"replicas": 3, "max_replicas": 2}, "max_replicas 2 is less than replicas 3"),
        ({"replicas": 0}, "ray.replicas: input should be greater than or equal to 1"),
        ({"cpus": 0}, "ray.cpus: input should be greater than 0"),
        ({"gpus": -1}, "ray.gpus: input should be greater than or equal to 0"),
        ({"replica": 2}, "unknown key 'ray.replica'; did you mean 'ray.replicas'"),
    ],
)
def test_ray_config__mistakes(ray: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        serve_config(ray=ray)


def test_run_on_ray__mistakes_are_told_before_ray_starts(tmp_path: Path) -> None:
    for options, error, told in (
        ({"models": (str(tmp_path),)}, EncoderError, "is no folder that `mcbeit export` wrote"),
        ({"host": "0.0.0.0"}, ConfigError, "there is no API key"),
    ):
        with pytest.raises(error, match=told):
            run_on_ray(serve_config(**options), told=lambda line: None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be listened at"):
        run_on_ray(serve_config(port=taken.getsockname()[1]), told=lambda line: None)


def test_check_room__this_machine_must_have_it_and_a_cluster_may_grow(deployment: ModuleType) -> None:
    _check_room(serve_config(ray={"replicas": 2, "cpus": 2}), {"CPU": 4.0})
    with pytest.raises(
        RunError, match=r"ray.replicas=3 with 2 CPU, 0 GPU each do not fit this machine, which has 4 CPU"
    ):
        _check_room(serve_config(ray={"replicas": 3, "cpus": 2}), {"CPU": 4.0})
    with pytest.raises(RunError, match="1 GPU each do not fit this machine, which has 4 CPU, 0 GPU"):
        _check_room(serve_config(ray={"cpus": 1, "gpus": 1}), {"CPU": 4.0})
    _check_room(serve_config(ray={"replicas": 3, "cpus": 2, "address": "auto"}), {"CPU": 4.0})


def test_check_alone__the_service_of_somebody_else_is_not_replaced(
    deployment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "status", lambda: ("NOT_STARTED", ""))
    _check_alone()
    monkeypatch.setattr(deployment, "status", lambda: ("RUNNING", ""))
    with pytest.raises(RunError, match=r"the cluster has a service called 'mcbeit' \(RUNNING\); end it first"):
        _check_alone()


def test_wait_until_ready__replicas_that_are_served_elsewhere(
    deployment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["DEPLOYING", "RUNNING", "DEPLOYING", "RUNNING", "RUNNING"])
    monkeypatch.setattr(deployment, "status", lambda: (next(states), ""))
    monkeypatch.setattr(deployment, "is_ready", lambda address: False)
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", on_ray.POLL_SECONDS / 2)
    with pytest.raises(RunError, match="all replicas run, but nothing answers at http://head:8000: the cluster's Ray"):
        _wait_until_ready(serve_config(ray={"address": "auto"}), "http://head:8000", StopRequest(""))
    assert list(states) == []


def test_wait_until_ready__on_this_machine_nobody_else_has_started_ray_serve(
    deployment: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment, "status", lambda: ("RUNNING", ""))
    monkeypatch.setattr(deployment, "is_ready", lambda address: False)
    monkeypatch.setattr(on_ray, "ANSWER_SECONDS", 0.0)
    monkeypatch.setattr(on_ray, "READY_SECONDS", 3 * on_ray.POLL_SECONDS)
    with pytest.raises(RunError, match=r"http://127.0.0.1:8000 did not become ready \(RUNNING\): Ray says no more"):
        _wait_until_ready(serve_config(), "http://127.0.0.1:8000", StopRequest(""))


# variables


def test_serve_environment__haproxy_keeps_its_files_in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    folder = Path("/tmp/mcbeit-s-4194304-abcdefgh")
    found = serve_environment(serve_config().ray, folder)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    files = [value for value in found.values() if value.startswith("/")]
    assert len(files) == 5
    assert all(Path(file).is_relative_to(folder) for file in files)
    assert len(found["RAY_SERVE_HAPROXY_SOCKET_PATH"]) + 57 <= 97


def test_serve_environment__services_on_one_machine_share_no_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    fixed = {8404, 8500, 9101, 9500}  # Ray's, of which other services may make use
    found = serve_environment(serve_config().ray, tmp_path)
    ports = {int(value) for name, value in found.items() if name.endswith("_PORT")}
    assert len(ports) == len(fixed)
    assert ports.isdisjoint(fixed)


def test_serve_environment__without_haproxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def haproxy(**options: Any) -> dict[str, str]:
        found = serve_environment(serve_config(ray=options).ray, tmp_path)
        return {name: value for name, value in found.items() if "HA" in name.split("_")}

    monkeypatch.setattr("sys.platform", "linux")
    assert haproxy(haproxy=False) == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    monkeypatch.setattr("sys.platform", "darwin")
    assert haproxy() == {"RAY_SERVE_ENABLE_HA_PROXY": "0"}


def test_free_port__nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as found:
        assert found.getsockname()[1] > 0
