"""deploy/serve.yaml and deploy/rayservice.yaml: as far as they can be checked without a cluster."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcbeit import __version__
from mcbeit.config import validate
from mcbeit.ray_cluster import ENVIRONMENT
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.ray_environment import serve_environment

DEPLOY = Path(__file__).parents[2] / "deploy"
FIELDS = {  # of the CRD, as KubeRay's reference names them
    "RayServiceSpec": "serveConfigV2 rayClusterConfig upgradeStrategy serveService excludeHeadPodFromServeSvc",
    "RayClusterSpec": "rayVersion authOptions enableInTreeAutoscaling headGroupSpec workerGroupSpecs",
    "HeadGroupSpec": "rayStartParams template",
    "WorkerGroupSpec": "groupName replicas minReplicas maxReplicas rayStartParams template",
}
FILES_AND_PORTS = ("HAPROXY_", "FALLBACK_PROXY_")  # of one service
OF_ONE_MACHINE = (*FILES_AND_PORTS, "_DRAINING_")  # and how long the load balancer takes


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """The objects of the manifest by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "rayservice.yaml").read_text())}


@pytest.fixture(scope="module")
def spec(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    assert objects["RayService"]["apiVersion"] == "ray.io/v1"
    return objects["RayService"]["spec"]


@pytest.fixture(scope="module")
def worker(spec: dict[str, Any]) -> dict[str, Any]:
    """The one group of workers."""
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    return group


@pytest.fixture(scope="module")
def inner(spec: dict[str, Any]) -> dict[str, Any]:
    """The Serve config inside the RayService."""
    return yaml.safe_load(spec["serveConfigV2"])


@pytest.fixture(scope="module")
def outer() -> dict[str, Any]:
    """The Serve config for a cluster that is there."""
    return yaml.safe_load((DEPLOY / "serve.yaml").read_text())


def args_of(serve: dict[str, Any]) -> dict[str, Any]:
    (application,) = serve["applications"]
    return application["args"]


# the Serve config


@pytest.mark.parametrize("name", ["inner", "outer"])
def test_serve_config__is_one_of_ray_and_one_of_ours(name: str, request: pytest.FixtureRequest) -> None:
    told = request.getfixturevalue(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray Serve warns of what it uses itself
        from ray.serve.schema import ServeDeploySchema

        from mcbeit.serve import deployment

        read = ServeDeploySchema.model_validate(told)
    (application,) = read.applications
    assert application.import_path == f"{deployment.__name__}:{deployment.build.__name__}"
    assert (application.name, application.route_prefix) == (deployment.APPLICATION, "/")
    assert told["http_options"].keys() <= type(read.http_options).model_fields.keys()
    config = validate(ServeConfig, args_of(told))
    bound = deployment.build(config)._bound_deployment
    assert [one.name for one in application.deployments] == [bound.name]
    assert application.deployments[0].user_config == bound.user_config
    assert read.http_options.request_timeout_s > config.limits.request_seconds
    assert config.ray.replicas >= 2


def test_serve_config__that_of_kuberay_is_the_same_but_for_who_may_ask(
    inner: dict[str, Any], outer: dict[str, Any]
) -> None:
    assert args_of(inner) == {**args_of(outer), "api_keys_file": "/keys/keys"}
    assert inner["http_options"] == {**outer["http_options"], "host": "0.0.0.0"}
    (theirs,), (ours,) = inner["applications"], outer["applications"]
    assert {**theirs, "args": None} == {**ours, "args": None}
    apart = {"applications": None, "http_options": None}
    assert {**inner, **apart} == {**outer, **apart}


# the RayService


def test_rayservice__has_the_fields_of_its_kind(spec: dict[str, Any], worker: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    assert spec.keys() <= set(FIELDS["RayServiceSpec"].split())
    assert cluster.keys() <= set(FIELDS["RayClusterSpec"].split())
    assert cluster["headGroupSpec"].keys() <= set(FIELDS["HeadGroupSpec"].split())
    assert worker.keys() <= set(FIELDS["WorkerGroupSpec"].split())


def test_rayservice__replicas_fit_the_pods_and_files_are_there(inner: dict[str, Any], worker: dict[str, Any]) -> None:
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    config = validate(ServeConfig, args_of(inner))
    assert float(container["resources"]["limits"]["cpu"]) == config.ray.cpus
    assert (worker["minReplicas"], worker["maxReplicas"]) == (config.ray.replicas, config.ray.max_replicas)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    for file in (*config.models, str(config.api_keys_file)):
        assert any(Path(file).is_relative_to(mount) for mount in mounts.values())


def test_rayservice__a_pod_ends_after_what_it_has_accepted(inner: dict[str, Any], worker: dict[str, Any]) -> None:
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    *_, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert args_of(inner)["drain_seconds"] < float(seconds) < pod["terminationGracePeriodSeconds"]


def test_rayservice__ports_agree(inner: dict[str, Any], worker: dict[str, Any], objects: dict[str, Any]) -> None:
    (container,) = worker["template"]["spec"]["containers"]
    port = inner["http_options"]["port"]
    assert [one["containerPort"] for one in container["ports"]] == [port]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}
    for_all, *_ = objects["NetworkPolicy"]["spec"]["ingress"]
    assert for_all == {"ports": [{"port": port}]}


def test_rayservice__all_pods_are_guarded(spec: dict[str, Any], objects: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    head, worker = (group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]))
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["authOptions"] == {"mode": "token"}
    budget, policy = (objects[kind]["spec"] for kind in ("PodDisruptionBudget", "NetworkPolicy"))
    assert budget["selector"]["matchLabels"] == worker["metadata"]["labels"]
    for template in (head, worker):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        (container,) = template["spec"]["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["image"] == f"REGISTRY/mcbeit:{__version__}"


def test_rayservice__ray_is_told_what_the_command_tells_it(spec: dict[str, Any], inner: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    config = validate(ServeConfig, args_of(inner))
    ours = {**ENVIRONMENT, **serve_environment(config.ray, Path("/tmp/folder"))}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        theirs = {one["name"]: one["value"] for one in container["env"]}
        same = {name for name in theirs if not any(part in name for part in OF_ONE_MACHINE)}
        assert {name: theirs[name] for name in same} == {name: ours[name] for name in same}
        ruled = {name for name in ours if not any(part in name for part in FILES_AND_PORTS)}
        assert {name for name in ruled if name.startswith("RAY_SERVE")} <= theirs.keys()
