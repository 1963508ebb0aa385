"""The clients of the service, against the service and against services that behave badly."""

import asyncio
import io
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from images import encode, photo
from PIL import Image
from serving import serving

import mcbeit.cli.embed  # before there are threads: under test, modules are compiled on import
import mcbeit.embed  # noqa: F401
from mcbeit.cli.main import cli
from mcbeit.embeddings import load_embeddings
from mcbeit.encoder import Encoder, EncoderConfig, load_encoder
from mcbeit.errors import EncoderError, ImageError, ServiceError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.http_requests import batches, retry_delay
from mcbeit.serve.client import AsyncClient, Client, ServedEncoder

PICTURES = [photo(seed=seed) for seed in range(7)]
FILES = [encode(picture) for picture in PICTURES]
VECTORS = FakeEncoder().embed(FILES)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, max_items=3, concurrency=2) as found:
        yield found


def test_embed__every_kind_of_image(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES[0])
    kinds = [FILES[0], tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(PICTURES[0]), PICTURES[0]]
    np.testing.assert_allclose(client.embed(kinds), np.stack([VECTORS[0]] * 5), atol=1e-6)


def test_embed__a_picture_that_is_to_be_turned(client: Client, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURES[0][:24]).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "turned.jpg") as turned:
        found = client.embed([turned, tmp_path / "turned.jpg"])
    np.testing.assert_allclose(found, FakeEncoder().embed([tmp_path / "turned.jpg"] * 2), atol=1e-6)


def test_embed__many_become_several_requests_in_order(client: Client) -> None:
    np.testing.assert_allclose(client.embed(iter(FILES)), VECTORS, atol=1e-6)
    assert client.embed([]).shape == (0, 64)
    assert client.embed(FILES, dimensions=8).shape == (7, 8)


def test_patch_features(client: Client) -> None:
    np.testing.assert_allclose(client.patch_features(FILES), FakeEncoder().patch_features(FILES), atol=1e-5)


def test_spec(client: Client) -> None:
    assert client.spec == FakeEncoder().spec


def test_async_client(address: str) -> None:
    async def work() -> None:
        async with AsyncClient(address, max_items=2) as client:
            np.testing.assert_allclose(await client.embed(FILES), VECTORS, atol=1e-6)
            assert (await client.patch_features(FILES[:1])).shape == (1, 4, 4, 64)
            assert (await client.spec()).dim == 64

    asyncio.run(work())


def test_embed__a_bad_image_is_called_by_its_own_name(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    with pytest.raises(ServiceError, match=r"bad\.png: this is not an image file") as caught:
        client.embed([*FILES, tmp_path / "bad.png"])
    assert (caught.value.status, caught.value.code) == (415, "unsupported_image_format")
    with pytest.raises(ServiceError, match="image 5: this is not"):
        client.embed([*FILES[:5], b"no image at all", FILES[5]])
    with pytest.raises(ServiceError, match=r"none\.png: cannot be read"):
        client.embed([tmp_path / "none.png"])


def test_client__no_such_model(address: str) -> None:
    with Client(address, model="other") as client, pytest.raises(ServiceError, match=r"no model 'other'.*served: fake"):
        client.embed(FILES)


def test_client__no_service() -> None:
    with Client("http://127.0.0.1:9", retries=1) as client, pytest.raises(ServiceError, match="is the service running"):
        client.embed(FILES)


def test_batches__within_both_limits() -> None:
    assert [len(batch.files) for batch in batches([b"x" * 100] * 7, 3, 10**6)] == [3, 3, 1]
    assert [batch.start for batch in batches([b"x" * 100] * 7, 3, 10**6)] == [0, 3, 6]
    assert [len(batch.files) for batch in batches([b"x" * 100] * 5, 100, 650)] == [2, 2, 1]
    assert [len(batch.files) for batch in batches([b"x" * 9000] * 2, 100, 650)] == [1, 1]


@pytest.mark.parametrize(
    ("status", "headers", "text", "low", "high"),
    [
        (429, {"retry-after": "2"}, "", 2, 2.25),
        (429, {"retry-after": "2", "retry-after-ms": "500"}, "", 0.5, 0.75),
        (429, {"retry-after": "9999"}, "", 30, 30.25),
        (503, {}, "", 0.1, 0.25),
        (None, {}, "", 0.1, 0.25),
        (404, {}, "Path '/v1/embed' not found.", 0.1, 0.25),
        (429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, "", 0.1, 0.25),
    ],
)
def test_retry_delay(status: int | None, headers: dict[str, str], text: str, low: float, high: float) -> None:
    delay = retry_delay(status, headers, text, 0)
    assert delay is not None
    assert low <= delay <= high


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [(400, {}, ""), (404, {}, "{}"), (500, {"x-should-retry": "false"}, ""), (413, {}, "")],
)
def test_retry_delay__what_would_not_help(status: int, headers: dict[str, str], text: str) -> None:
    assert retry_delay(status, headers, text, 0) is None


class Moody(BaseHTTPRequestHandler):
    """Answers what `plan` says, one after the other; then as a service that answers everything with ones."""

    plan: ClassVar[list[Any]] = []
    revisions: ClassVar[list[str]] = []
    asked = 0

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "fake", "spec": FakeEncoder().spec.model_dump(mode="json"),
                                                "max_items": 4, "max_body_bytes": 10**6}]}).encode())  # fmt: skip

    def do_POST(self) -> None:
        kind = type(self)
        kind.asked += 1
        body = self.rfile.read(int(self.headers["content-length"]))
        count = max(1, body.count(b"filename="))
        if kind.plan:
            status, headers = kind.plan.pop(0)
            if status is None:
                self.close_connection = True
                return
            self._answer(status, b'{"error": {"message": "no", "code": "no", "param": null}}', headers)
        elif count > 2:
            self._answer(413, b'{"error": {"message": "too many", "code": "too_many", "param": null}}')
        else:
            file = io.BytesIO()
            np.save(file, np.ones((count, 64), np.float32))
            revision = kind.revisions.pop(0) if kind.revisions else "a"
            self._answer(200, file.getvalue(), {"x-model-revision": revision})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *parts: Any) -> None:
        pass


@pytest.fixture
def moody() -> Iterator[type[Moody]]:
    """A bad service; `moody.address` is where it is."""

    class Mine(Moody):
        address = ""

    with ThreadingHTTPServer(("127.0.0.1", 0), Mine) as server:
        Mine.address = f"http://127.0.0.1:{server.server_port}"
        Mine.plan, Mine.revisions, Mine.asked = [], [], 0
        Thread(target=server.serve_forever, daemon=True).start()
        yield Mine
        server.shutdown()


NOW = {"retry-after-ms": "1"}


def test_retries__until_there_is_an_answer(moody: Any) -> None:
    moody.plan = [(503, NOW), (429, NOW), (None, NOW), (500, NOW)]
    with Client(moody.address) as client:
        assert client.embed(FILES[:1]).shape == (1, 64)
    assert moody.asked == 5


def test_retries__have_an_end(moody: Any) -> None:
    moody.plan = [(503, NOW)] * 10
    with Client(moody.address, retries=2) as client, pytest.raises(ServiceError, match=r"refuses \(503\): no"):
        client.embed(FILES[:1])
    assert moody.asked == 3


def test_retries__not_where_the_service_says_so(moody: Any) -> None:
    moody.plan = [(500, {"x-should-retry": "false"})]
    with Client(moody.address) as client, pytest.raises(ServiceError, match=r"\(500\)"):
        client.embed(FILES[:1])
    assert moody.asked == 1


def test_embed__a_request_that_is_too_large_is_halved(moody: Any) -> None:
    with Client(moody.address) as client:
        assert client.embed(FILES).shape == (7, 64)


def test_embed__of_one_model_only(moody: Any) -> None:
    moody.revisions = ["a", "b", "b", "b"]
    with Client(moody.address, concurrency=1) as client, pytest.raises(ServiceError, match="the model was replaced"):
        client.embed(FILES)


def test_load_encoder__of_an_address(address: str, tmp_path: Path) -> None:
    served = load_encoder(address)
    assert isinstance(served, ServedEncoder)
    assert isinstance(served, Encoder)
    assert served.spec == FakeEncoder().spec
    np.testing.assert_allclose(served.embed(FILES), VECTORS, atol=1e-6)
    pixels = np.stack([served.spec.preprocess.pixels(data) for data in FILES])
    np.testing.assert_allclose(served.embed_pixels(pixels), VECTORS, atol=1e-6)
    np.testing.assert_allclose(served.compute(pixels, patches=True), FakeEncoder().patch_features(FILES), atol=1e-5)
    whole = load_encoder(f"{address}#fake", EncoderConfig(normalize=False))
    np.testing.assert_allclose(whole.embed(FILES), FakeEncoder(normalize=False).embed(FILES), rtol=1e-5)
    with pytest.raises(ImageError, match="image 1: this is not an image file"):
        served.embed([FILES[0], b"bad"])
    with pytest.raises(EncoderError, match="pooling: chosen when the served model was exported"):
        load_encoder(address, EncoderConfig(pooling="cls"))
    with pytest.raises(EncoderError, match="a service is not computed by threads"):
        load_encoder(address, threads=2)


def test_embed_command__of_an_address(address: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index, data in enumerate(FILES):
        (tmp_path / "photos" / f"{index}.png").write_bytes(data)
    words = ["embed", address, str(tmp_path / "photos"), "-o", str(tmp_path / "out.npy")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    found = load_embeddings(tmp_path / "out.npy")
    np.testing.assert_allclose(found.vectors, VECTORS, atol=1e-6)
    assert found.spec.fingerprint == FakeEncoder().spec.fingerprint
