"""The service over real HTTP: safety, health, overload, swapping models, stopping."""

import gzip
import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from images import bomb, encode, photo
from serving import IMAGE_TYPE, HeldEncoder, serve_config, serving

from mcbeit.errors import ConfigError, EncoderError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.plain import PlainServer

PNG = encode(photo())


def embed(client: httpx.Client, data: bytes = PNG, **options: Any) -> httpx.Response:
    return client.post("/v1/embed", content=data, headers={**IMAGE_TYPE, **options.pop("headers", {})}, **options)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_answer__is_that_of_the_encoder_offline() -> None:
    with serving() as client:
        found = embed(client).json()["embeddings"]
        np.testing.assert_allclose(found, FakeEncoder().embed([PNG]), atol=1e-6)


def test_answer__has_an_id_a_revision_and_timings() -> None:
    with serving() as client:
        answer = embed(client)
        assert answer.headers["x-request-id"].startswith("req-")
        assert answer.headers["x-model-revision"] == FakeEncoder().spec.fingerprint
        stages = {part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")}
        assert {"read", "decode", "queue", "infer", "encode", "total"} <= stages
        assert "x-total-time" in answer.headers
        named = embed(client, params={"model": "fake"})
        assert named.status_code == 200
        told = client.get("/v1/models", headers={"x-request-id": "mine-1"})
        assert told.headers["x-request-id"] == "mine-1"
        forged = client.get("/v1/models", headers={"x-request-id": "a" * 500})
        assert forged.headers["x-request-id"].startswith("req-")


def test_cache__the_second_time_the_model_is_not_asked() -> None:
    encoder = HeldEncoder()
    with serving(encoder) as client:
        before = len(encoder.sizes)
        first, second = embed(client), embed(client)
        assert first.json() == second.json()
        assert 'cache;desc="1 of 1 images"' in second.headers["server-timing"]
        assert len(encoder.sizes) == before + 1
        cut = embed(client, params={"dimensions": 8})  # of the same numbers, and of unit length
        assert len(encoder.sizes) == before + 1
        assert np.linalg.norm(cut.json()["embeddings"][0]) == pytest.approx(1, abs=1e-5)
        embed(client, encode(photo(seed=1)))
        embed(client, params={"patches": "true"})
        assert len(encoder.sizes) == before + 3


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (b"", 400, "empty_image"),
        (b"text", 415, "unsupported_image_format"),
        (PNG[: len(PNG) // 2], 400, "image_decode_failed"),
        (bomb(), 413, "too_large"),
        (PNG + b"<html>appended</html>", 200, ""),
        (b"GIF89a" + PNG, 400, "image_decode_failed"),
    ],
)
def test_images__bad_ones_are_4xx_and_the_service_goes_on(data: bytes, status: int, told: str) -> None:
    with serving() as client:
        answer = embed(client, data)
        assert answer.status_code == status
        if told:
            assert code(answer) == told
            assert answer.headers["x-should-retry"] == "false"
        assert embed(client).status_code == 200


def test_images__one_bad_image_names_itself_and_the_others_are_not_lost() -> None:
    with serving() as client:
        files = [("file", (f"{i}.png", PNG if i != 3 else b"no image")) for i in range(5)]
        answer = client.post("/v1/embed", files=files)
        assert answer.status_code == 415
        assert answer.json()["error"]["param"] == "input[3]"
        assert answer.json()["detail"].startswith("input[3]: this is not an image file")


def test_batches__thirty_one_good_ones_beside_one_bad_one_are_as_if_alone() -> None:
    good = [encode(photo(seed=seed)) for seed in range(31)]
    with serving(cache_bytes=0) as client, ThreadPoolExecutor(32) as pool:
        alone = FakeEncoder().embed(good)
        found = list(pool.map(lambda data: embed(client, data), [*good, b"bad"]))
        assert [answer.status_code for answer in found] == [200] * 31 + [415]
        vectors = np.array([answer.json()["embeddings"][0] for answer in found[:31]])
        np.testing.assert_allclose(vectors, alone, atol=1e-6)


class Blank(FakeEncoder):
    """Gives no numbers for black images."""

    def compute(self, pixels: np.ndarray, *, patches: bool = False) -> np.ndarray:
        numbers = super().compute(pixels, patches=patches)
        numbers[(pixels == 0).all(axis=(1, 2, 3))] = np.nan
        return numbers


def test_images__that_the_model_has_no_numbers_for() -> None:
    with serving(Blank()) as client:
        answer = embed(client, encode(np.zeros((9, 9, 3), np.uint8)))
        assert (answer.status_code, code(answer)) == (422, "not_finite")
        assert embed(client).status_code == 200


def test_body__too_long_by_its_header_or_by_its_bytes() -> None:
    limits = {"body_bytes": 5000, "image_bytes": 5000}
    with serving(limits=limits) as client:
        assert code(embed(client, b"x" * 5001)) == "body_too_large"
        answer = client.post("/v1/embed", content=iter([b"x" * 1000] * 9), headers=IMAGE_TYPE)  # chunked
        assert (answer.status_code, code(answer)) == (413, "body_too_large")
        assert embed(client, encode(photo(8, 8))).status_code == 200


@pytest.mark.parametrize(("name", "packed"), [("gzip", gzip.compress(PNG)), ("deflate", zlib.compress(PNG))])
def test_body__packed(name: str, packed: bytes) -> None:
    with serving() as client:
        answer = client.post("/v1/embed", content=packed, headers={"content-encoding": name})
        assert answer.status_code == 200
        assert answer.json() == embed(client).json()


@pytest.mark.parametrize(
    ("name", "body", "status", "told"),
    [
        ("gzip", gzip.compress(bytes(50_000_000)), 413, "body_too_large"),
        ("gzip", gzip.compress(PNG)[:-9], 400, "invalid_encoding"),
        ("gzip", PNG, 400, "invalid_encoding"),
        ("br", PNG, 415, "unsupported_encoding"),
    ],
)
def test_body__packed_badly(name: str, body: bytes, status: int, told: str) -> None:
    with serving() as client:
        answer = client.post("/v1/embed", content=body, headers={"content-encoding": name})
        assert (answer.status_code, code(answer)) == (status, told)
        assert client.get("/health/ready").status_code == 200


def test_body__that_does_not_arrive() -> None:
    with serving(limits={"body_seconds": 0.2}) as client:
        address = client.base_url
        with socket.create_connection((address.host, address.port or 80), timeout=30) as slow:
            slow.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_header__that_does_not_end() -> None:
    with serving(limits={"header_seconds": 0.2}) as client:
        address = client.base_url
        with socket.create_connection((address.host, address.port or 80), timeout=30) as slow:
            slow.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: x\r\n")
            assert slow.recv(1000) == b""  # it hung up
        assert embed(client).status_code == 200


def test_timeout__is_the_services_own() -> None:
    encoder = HeldEncoder()
    with serving(encoder, limits={"request_seconds": 0.3}) as client:
        encoder.hold()
        answer = embed(client, encode(photo(seed=5)), headers={"x-request-timeout-seconds": "0"})
        encoder.may_go.set()
        assert (answer.status_code, code(answer)) == (408, "timeout")


def test_overload__is_429_with_the_time_to_wait() -> None:
    encoder = HeldEncoder()
    with serving(encoder, limits={"waiting_items": 2}) as client, ThreadPoolExecutor(2) as pool:
        encoder.hold()
        waiting = [pool.submit(embed, client, encode(photo(seed=seed))) for seed in (1, 2)]
        service = client.server.service  # type: ignore[attr-defined]
        wait_until(lambda: service.admission.items == 2)
        refused = embed(client, encode(photo(seed=3)))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1000
        assert refused.headers["x-should-retry"] == "true"
        encoder.may_go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert embed(client, encode(photo(seed=3))).status_code == 200
        assert service.admission.items == 0


def test_client__that_leaves_is_not_computed() -> None:
    encoder = HeldEncoder()
    with serving(encoder) as client:
        service = client.server.service  # type: ignore[attr-defined]
        encoder.hold()
        with pytest.raises(httpx.ReadTimeout):
            embed(client, encode(photo(seed=1)), timeout=0.3)
        with pytest.raises(httpx.ReadTimeout):
            embed(client, encode(photo(seed=2)), timeout=0.3)
        wait_until(lambda: service.admission.items == 0)
        encoder.may_go.set()
        assert embed(client, encode(photo(seed=3))).status_code == 200
        assert service.models["fake"].num_users == 0


def test_keys__are_asked_for_everywhere_but_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCBEIT_API_KEYS", "first,second")
    with serving() as client:
        for path in ("/v1/models", "/metrics"):
            refused = client.get(path)
            assert (refused.status_code, code(refused)) == (401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert embed(client).status_code == 401
        for wrong in ("Bearer wrong", "Bearer", "Basic first", "first", "Bearer firs", "Bearer firstt", "Bearer ä"):
            headers = {"authorization": wrong.encode()}
            assert client.get("/v1/models", headers=headers).status_code == 401, wrong
        for right in ({"authorization": "Bearer first"}, {"authorization": "bearer second"}, {"x-api-key": "second"}):
            assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 200


def test_cors__only_for_pages_that_are_named() -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with serving(cors_origins=["https://shop.example"]) as client:
        answer = client.options("/v1/embed", headers={"origin": "https://shop.example", **asks})
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        other = client.options("/v1/embed", headers={"origin": "https://evil.example", **asks})
        assert "access-control-allow-origin" not in other.headers
    with serving() as client:
        assert client.options("/v1/embed", headers={"origin": "https://shop.example", **asks}).status_code == 405


def test_health__readiness_is_the_age_of_the_last_numbers() -> None:
    encoder = HeldEncoder()
    with serving(encoder, canary_seconds=0.1) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        encoder.hold()
        wait_until(lambda: client.get("/health/ready").status_code == 503)
        assert "no model has given numbers for" in client.get("/health/ready").json()["reason"]
        assert client.get("/health/live").status_code == 200
        encoder.may_go.set()
        wait_until(lambda: client.get("/health/ready").status_code == 200)


def test_metrics__count_stages_batches_and_refusals() -> None:
    with serving() as client:
        embed(client)
        embed(client)
        embed(client, b"text")
        told = client.get("/metrics").text
        assert 'mcbeit_requests_total{route="/v1/embed",status="200"} 2.0' in told
        assert 'mcbeit_rejected_total{code="unsupported_image_format"} 1.0' in told
        assert 'mcbeit_images_total{cached="yes",model="fake"} 1.0' in told
        assert 'mcbeit_stage_seconds_count{stage="infer"}' in told
        assert "mcbeit_ready 1.0" in told
        assert "mcbeit_items_in_flight 0.0" in told


def test_reload__a_new_model_takes_over_and_no_request_is_lost() -> None:
    stop = threading.Event()
    statuses: list[tuple[int, str]] = []
    with serving(cache_bytes=0) as client:

        def ask() -> None:
            seed = 0
            while not stop.is_set():
                seed += 1
                answer = embed(client, encode(photo(seed=seed)))
                statuses.append((answer.status_code, answer.headers["x-model-revision"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            answer = client.post("/v1/models/fake/reload")
            assert answer.status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _ in statuses} == {200}
        assert client.post("/v1/models/none/reload").status_code == 404


def test_stop__what_was_accepted_is_answered() -> None:
    encoder = HeldEncoder()
    with serving(encoder) as client, ThreadPoolExecutor(4) as pool:
        encoder.hold()
        asked = [pool.submit(embed, client, encode(photo(seed=seed))) for seed in range(4)]
        service = client.server.service  # type: ignore[attr-defined]
        wait_until(lambda: service.admission.items == 4)
        client.server.stop()  # type: ignore[attr-defined]
        assert service.unready_because() == "draining"
        encoder.may_go.set()
        assert [one.result().status_code for one in asked] == [200] * 4


def test_start__mistakes_are_told_before_anything_listens(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no folder that `mcbeit export` wrote"):
        PlainServer(serve_config(models=(str(tmp_path),)))
    with pytest.raises(ConfigError, match="two models are called 'fake'"):
        PlainServer(serve_config(models=("fake", "fake")))
    with pytest.raises(ConfigError, match="there is no API key"):
        PlainServer(serve_config(host="0.0.0.0"))
    with serving() as client, pytest.raises(ConfigError, match="cannot be listened at"):
        PlainServer(serve_config(port=client.base_url.port))


def test_routes__that_are_not_there_are_said_so_in_json() -> None:
    with serving() as client:
        assert (client.get("/nowhere").status_code, code(client.get("/nowhere"))) == (404, "not_found")
        assert code(client.get("/v1/embed")) == "method_not_allowed"


def test_models__two_have_two_names() -> None:
    with serving(models=("first=fake", "second=fake")) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["first", "second"]
        answer = client.post("/v1/embed", content=PNG, headers=IMAGE_TYPE, params={"model": "third"})
        assert (answer.status_code, code(answer)) == (404, "model_not_found")
        assert "served: first, second" in answer.text


def test_log__as_json_tells_of_every_request(capfd: pytest.CaptureFixture[str]) -> None:
    from mcbeit.serve.log import set_up_log

    set_up_log("json")
    with serving(access_log=True) as client:
        embed(client, b"text", headers={"x-request-id": "abc"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (told,) = [line for line in lines if line.get("request_id") == "abc"]
    assert (told["status"], told["code"], told["route"]) == (415, "unsupported_image_format", "/v1/embed")
