"""The files in deploy/: as far as they can be checked without a cluster."""

import shlex
from pathlib import Path

import pytest
import yaml

from mcbeit import __version__
from mcbeit.cli.train import command
from mcbeit.jobs import load_job
from mcbeit.ray_cluster import ENVIRONMENT, Scale

DEPLOY = Path(__file__).parents[1] / "deploy"
FIELDS = {  # of the CRD, as KubeRay's reference names them
    "RayJobSpec": "entrypoint shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit runtimeEnvYAML "
    "rayClusterSpec",
    "RayClusterSpec": "rayVersion authOptions headGroupSpec workerGroupSpecs",
    "HeadGroupSpec": "rayStartParams template",
    "WorkerGroupSpec": "groupName replicas minReplicas maxReplicas rayStartParams template",
}


@pytest.fixture(scope="module")
def spec() -> dict:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    return job["spec"]


def test_rayjob__has_the_fields_of_its_kind(spec) -> None:
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= set(FIELDS["RayJobSpec"].split())
    assert cluster.keys() <= set(FIELDS["RayClusterSpec"].split())
    assert cluster["headGroupSpec"].keys() <= set(FIELDS["HeadGroupSpec"].split())
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() <= set(FIELDS["WorkerGroupSpec"].split())
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_rayjob__its_command_is_one_of_ours_and_fits_its_cluster(spec) -> None:
    program, name, *arguments = shlex.split(spec["entrypoint"])
    assert (program, name) == ("mcbeit", "train")
    options = command.make_context("train", list(arguments)).params
    assert options["resume"]
    config = load_job(options["preset"], options["assignments"])
    assert config.run == "s3://BUCKET/runs/mcbeit-base"
    scale = Scale.parse(options["workers"], options["gpus_per_worker"], options["address"])
    gpus = sum(
        group["replicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    )
    assert scale.max_workers * scale.gpus_per_worker == gpus
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert variables.items() <= ENVIRONMENT.items()


def test_deploy__the_image_has_the_version_of_the_package(spec) -> None:
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {f"REGISTRY/mcbeit:{__version__}"}
    assert f"REGISTRY/mcbeit:{__version__}" in (DEPLOY / "Dockerfile").read_text()
