"""Indices under Ray Serve: several replicas, one writer, and what is left when either is gone."""

import base64
import os
import signal
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from images import encode, photo
from processes import processes_of_ray, wait_until
from ray_load import Served, served

from mcbeit.fake_encoder import FakeEncoder
from mcbeit.ray_cluster import descendants

pytestmark = pytest.mark.faults
FILES = [encode(photo(seed=seed)) for seed in range(8)]


def writer(service: Served) -> int:
    """The process that has the indices."""
    own = set(descendants(service.process.pid))
    (found,) = [pid for pid, title in processes_of_ray().items()
                if pid in own and "IndexWriter" in title and "__init__" not in title]  # fmt: skip
    return found


def found(client: httpx.Client, file: bytes) -> tuple[int, list[str]]:
    answer = client.post("/v1/indexes/shop/search", json={"image": base64.b64encode(file).decode(), "k": 3})
    return answer.status_code, [hit["id"] for hit in answer.json().get("data", [])]


def test_indexes__one_writer_for_all_replicas_and_nothing_is_lost(tmp_path: Path) -> None:
    vectors = FakeEncoder().embed(FILES)
    wanted = [str(index) for index in np.argsort(-(vectors @ vectors[2]))[:3]]
    words = ("--fake", "ray.replicas=2", f"indexes={tmp_path}")
    items = [{"id": str(index), "image": base64.b64encode(file).decode()} for index, file in enumerate(FILES)]
    with served(*words) as service:
        with httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
            assert client.put("/v1/indexes/shop").status_code == 201
            assert client.post("/v1/indexes/shop/items", json=items).json()["added"] == 8
            assert [found(client, FILES[2]) for _ in range(10)] == [(200, wanted)] * 10
            assert client.get("/v1/indexes/none").status_code == 404
            hang_up(service)  # which puts another writer in the place of the first, too
            assert found(client, FILES[2]) == (200, wanted)
            os.kill(writer(service), signal.SIGKILL)
            wait_until(lambda: found(client, FILES[2])[0] == 200, service.process)
            assert found(client, FILES[2]) == (200, wanted)
        assert service.stop()[0] == 0
    with served(*words) as service, httpx.Client(base_url=service.address, timeout=60, trust_env=False) as client:
        assert found(client, FILES[2]) == (200, wanted)


def hang_up(service: Served) -> None:
    """Have the models loaded anew, and wait until they are."""
    assert service.process.stdout is not None
    patience = threading.Timer(180, service.process.kill)
    patience.start()
    service.process.send_signal(signal.SIGHUP)
    for line in service.process.stdout:
        if "the models are loaded anew" in line:
            break
    patience.cancel()
