"""`mcbeit serve` under Ray while replicas die, models change and load comes and goes; run by `make test-faults`."""

import base64
import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from backbones import backbone, save_backbone
from images import encode, photo
from processes import ROOT, begin, finish, wait_until
from ray_load import Answer, Head, Load, Served, cluster, replicas_below, sending, served

from mcbeit.encoder import load_encoder
from mcbeit.errors import ServiceError
from mcbeit.export import ExportConfig, export_model
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.http_client import Client
from mcbeit.ray_cluster import descendants
from mcbeit.serve.ray_environment import free_port

pytestmark = pytest.mark.faults
NO_ROUTE = "404 Path '"  # what Ray's proxy says when the service is gone; our client asks again
FRESH = ("cache_bytes=0", "drain_seconds=20")  # every image is computed


def test_serve__answers_every_family_and_leaves_nothing() -> None:
    picture = encode(photo(seed=1))
    text = base64.b64encode(picture).decode()
    vector = FakeEncoder().embed([picture])[0]
    with served("--fake") as service:
        pids = set(descendants(service.process.pid))
        with httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
            asked = {"input": text, "model": "fake"}
            found = {
                "own": client.post("/v1/embed", content=picture).json()["embeddings"][0],
                "openai": client.post("/v1/embeddings", json=asked).json()["data"][0]["embedding"],
                "weaviate": client.post("/vectorize", json={"images": [text], "texts": []}).json()["imageVectors"][0],
            }
            assert client.get("/health/ready").status_code == 200
            assert client.get("/-/healthz").text == "success"
            assert client.get("/no/such/path").status_code == 404
        with Client(service.address) as ours:
            found["client"] = ours.embed([picture])[0]
        for name, numbers in found.items():
            np.testing.assert_allclose(numbers, vector, atol=1e-5, err_msg=name)
        began = time.monotonic()
        code, output = service.stop()
        print(f"ready after {service.start_seconds:.1f} s, ended after {time.monotonic() - began:.1f} s")
        assert code == 0
        assert "stopped; every request that was accepted is answered" in output
        assert service.leftovers(pids) == []


@pytest.fixture(scope="module")
def pair() -> Iterator[Served]:
    """Two replicas."""
    with served("--fake", "ray.replicas=2", *FRESH) as service:
        yield service


def kill_one(service: Served) -> int:
    """SIGKILL for one of its replicas."""
    victim = min(service.replicas())
    os.kill(victim, signal.SIGKILL)
    return victim


def test_serve__a_killed_replica_costs_what_it_was_working_at(pair: Served) -> None:
    pair.wait_for(2)
    with sending(pair.address) as load:
        load.wait_for(200)
        killed_at = time.monotonic()
        seconds = pair.wait_for(2, without=frozenset({kill_one(pair)}))
        load.wait_for(200)
    window = max((answer.ended for answer in load.failed), default=killed_at) - killed_at
    print(f"{load.told()}; last failure {window:.1f} s after the kill, two replicas again after {seconds:.1f} s")
    assert len(load.failed) < len(load.answers) / 10
    assert all(answer.is_good for answer in load.answers[-100:])


def test_serve__a_killed_replica_costs_our_client_nothing(pair: Served) -> None:
    pair.wait_for(2)
    pictures = [encode(photo(seed=seed)) for seed in range(4)]
    vectors = FakeEncoder().embed(pictures)
    with Client(pair.address, timeout=60.0) as client:

        def ask() -> Answer:
            began = time.monotonic()
            try:
                found = client.embed(pictures)
            except ServiceError as error:
                return Answer(began, time.monotonic(), error.status, None, str(error))
            np.testing.assert_allclose(found, vectors, atol=1e-5)
            return Answer(began, time.monotonic(), 200, None, "")

        with Load(ask) as load:
            load.wait_for(200)
            seconds = pair.wait_for(2, without=frozenset({kill_one(pair)}))
            load.wait_for(200)
    print(f"with retries: {load.told()}; two replicas again after {seconds:.1f} s")
    assert load.failed == []


def test_serve__the_only_replica_killed_costs_our_client_nothing() -> None:
    picture = encode(photo(seed=1))
    with served("--fake", *FRESH) as service, Client(service.address, timeout=60.0, retries=8) as client:
        client.embed([picture])
        service.wait_for(1)
        killed_at = time.monotonic()
        kill_one(service)
        client.embed([picture])
        print(f"the only replica: answered again {time.monotonic() - killed_at:.1f} s after its death")


def test_serve__asked_to_stop_answers_what_it_has_accepted() -> None:
    with served("--fake", "ray.replicas=2", *FRESH) as service:
        pids = set(descendants(service.process.pid))
        with sending(service.address, 48, side=640, num_clients=6, keeps=False) as load:
            load.wait_for(12)
            asked_at = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            output, _ = service.process.communicate(timeout=180)
        seconds = time.monotonic() - asked_at
        under_way = [answer for answer in load.answers if answer.began < asked_at < answer.ended]
        late = [answer for answer in load.answers if answer.began >= asked_at and answer.was_accepted]
        kinds = Counter(answer.error for answer in late)
        print(f"{len(under_way)} under way, {len(late)} came later {dict(kinds)}, ended after {seconds:.1f} s")
        assert service.process.returncode == 0, output
        assert len(under_way) >= 4
        assert [answer for answer in under_way if not answer.is_good] == []
        gone_at = min((answer.ended for answer in late if answer.error.startswith(NO_ROUTE)), default=float("inf"))
        assert [answer for answer in late if not answer.is_good and answer.ended < gone_at] == []
        assert service.leftovers(pids) == []


def export(weights: Path, folder: Path) -> str:
    """Export weights into a folder, over what is there; the revision."""
    options = ExportConfig(num_images=8, measure_speed=False, num_heads=2)
    export_model(str(weights), folder, options, force=True)
    return load_encoder(folder).spec.fingerprint


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two models."""
    folder = tmp_path_factory.mktemp("weights")
    return [save_backbone(folder / f"{seed}.pth", backbone(seed=seed)) for seed in (1, 2)]


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_serve__another_model_takes_over_under_load(num_replicas: int, weights: list[Path], tmp_path: Path) -> None:
    old = export(weights[0], tmp_path / "model")
    with served(str(tmp_path / "model"), f"ray.replicas={num_replicas}", *FRESH) as service:
        with sending(service.address, num_clients=4) as load:
            load.wait_for(50)
            new = export(weights[1], tmp_path / "model")
            before, began = frozenset(service.replicas()), time.monotonic()
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: load.answers[-1].revision == new, service.process)
            first = time.monotonic() - began
            service.wait_to_say("the models are loaded anew")
            seconds = time.monotonic() - began
            load.wait_for(50)
        print(f"{num_replicas} replicas: {load.told()}; new model after {first:.1f} s, alone after {seconds:.1f} s")
        assert load.failed == []
        assert {answer.revision for answer in load.answers} == {old, new}
        assert {answer.revision for answer in load.answers[-20:]} == {new}
        assert service.replicas().isdisjoint(before)


def test_serve__a_model_that_cannot_be_served_does_not_take_over(weights: list[Path], tmp_path: Path) -> None:
    revision = export(weights[0], tmp_path / "model")
    with served(str(tmp_path / "model"), *FRESH) as service:
        before = service.replicas()
        (tmp_path / "model" / "model.onnx").write_bytes(b"no graph")
        service.process.send_signal(signal.SIGHUP)
        service.wait_to_say("SIGHUP: the models that are loaded go on")
        with sending(service.address, num_clients=1) as load:
            load.wait_for(5)
        assert load.failed == []
        assert {answer.revision for answer in load.answers} == {revision}
        assert service.replicas() == before


def test_serve__more_than_the_machine_has_is_told_at_once() -> None:
    output = finish(begin("serve", "--fake", "ray.replicas=3", "ray.cpus=99", "port=0"), 2)
    assert re.search(
        r"ray.replicas=3 with 99 CPU, 0 GPU each do not fit this machine, which has \d+ CPU, 0 GPU", output
    )


def test_serve__replicas_come_and_go_with_the_load() -> None:
    scaling = ("max_replicas=2", "target_requests=2", "upscale_seconds=1", "downscale_seconds=3")
    with served(
        "--fake", "ray.cpus=1", "limits.waiting_seconds=60", *(f"ray.{word}" for word in scaling), *FRESH
    ) as service:
        assert len(service.replicas()) == 1
        with sending(service.address, 16, side=256, num_clients=8) as load:
            up = service.wait_for(2)
            load.wait_for(50)
        down = service.wait_for(1)
        print(f"{load.told()}; two replicas after {up:.1f} s, one again {down:.1f} s after the last request")
        assert load.failed == []
        assert httpx.get(f"{service.address}/health/ready", timeout=60, trust_env=False).status_code == 200


# a cluster that is there


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with cluster() as head:
        yield head


def config_file(path: Path, models: Path, port: int, generation: int) -> str:
    """deploy/serve.yaml with another model, another port and less of this machine."""
    told = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    (application,) = told["applications"]
    application["args"] |= {"models": [str(models)], "cache_bytes": 0}
    application["args"]["ray"] |= {"max_replicas": 2, "cpus": 1}
    application["deployments"][0]["user_config"] = {"generation": generation}
    told["http_options"]["port"] = port
    path.write_text(yaml.safe_dump(told))
    return str(path)


def is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/health/ready", timeout=60, trust_env=False).status_code == 200
    return False


def test_deploy__the_serve_config_serves_and_loads_models_in_place(
    head: Head, weights: list[Path], tmp_path: Path
) -> None:
    model, port = tmp_path / "model", free_port()
    old, address = export(weights[0], model), f"http://127.0.0.1:{port}"
    file = config_file(tmp_path / "serve.yaml", model, port, 0)
    running = head.serve("run", "--address", head.address, file)
    wait_until(lambda: is_ready(address) and len(replicas_below(head.process.pid)) == 2, running)
    before = replicas_below(head.process.pid)
    with sending(address, num_clients=4) as load:
        load.wait_for(50)
        new, began = export(weights[1], model), time.monotonic()
        finish(head.serve("deploy", "--address", head.dashboard, config_file(Path(file), model, port, 1)))
        wait_until(lambda: {answer.revision for answer in load.answers[-20:]} == {new}, running)
        seconds = time.monotonic() - began
        load.wait_for(50)
    print(f"serve deploy: {load.told()}; new model alone after {seconds:.1f} s, in the same processes")
    assert load.failed == []
    assert {answer.revision for answer in load.answers} == {old, new}
    assert replicas_below(head.process.pid) == before
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=180)
    wait_until(lambda: not replicas_below(head.process.pid))


def test_serve__on_a_cluster_that_is_there(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**head.variables, "MCBEIT_API_KEYS": "secret"}.items():
        monkeypatch.setenv(name, value)
    with served("--fake", f"ray.address={head.address}", "ray.cpus=1") as service:
        answer = httpx.post(f"{service.address}/v1/embed", content=encode(photo()), timeout=60, trust_env=False)
        assert answer.status_code == 401
        with Client(service.address, api_key="secret") as client:
            assert client.embed([encode(photo())]).shape == (1, FakeEncoder().spec.dim)
            second = begin("serve", "--fake", f"ray.address={head.address}", "ray.cpus=1", "port=0")
            assert "the cluster has a service called 'mcbeit' (RUNNING); end it first" in finish(second, code=2)
            assert client.embed([encode(photo())]).shape == (1, FakeEncoder().spec.dim)
        code, _ = service.stop()
        assert code == 0
    wait_until(lambda: not replicas_below(head.process.pid))
    assert head.process.poll() is None
