"""Images by URL: from the public internet and from nowhere else."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from images import encode, photo
from serving import IMAGE_TYPE, serving

from mcbeit.serve.config import FetchConfig
from mcbeit.serve.errors import RequestError
from mcbeit.serve.fetch import Fetcher, Refused, is_public_address

PNG = encode(photo())

NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.0.8", "192.0.0.170", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1",
    "ff02::1",    "2001::1", "2001:db8::1", "100::1", "5f00::1", "not an address", "",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808",
          "2002:808:808::1"]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_is_public_address__not(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_is_public_address(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.png", "file:///etc/passwd", "gopher://example.org", "//example.org/a.png", "http://",
        "http:///a.png", "http://user@example.org/", "http://user:word@example.org/", "http://example.org:22/",
        "http://example.org:6379/", "http://allowed.example\\@127.0.0.1/x", "http://127.0.0.1/", "http://[::1]/",
        "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://169.254.169.254/latest/meta-data",
        "http://example.org/\r\nHost: evil", "http://exam ple.org/", "http://example.org/" + "a" * 5000,
        "http://[fe80::1%25eth0]/", "http://[64:ff9b::7f00:1]/",
    ],
)  # fmt: skip
def test_checked__refuses(url: str) -> None:
    with pytest.raises((Refused, ValueError)):
        Fetcher(FetchConfig()).checked(url)


@pytest.mark.parametrize(
    ("host", "fits"),
    [("a.example.org", True), ("b.a.example.org", True), ("example.org", False), ("badexample.org", False),
     ("shop.com", True), ("x.shop.com", False), ("SHOP.com", True), ("shop.com.", True), ("shop.com.evil.net", False)],
)  # fmt: skip
def test_checked__hosts_that_are_allowed(host: str, fits: bool) -> None:
    fetcher = Fetcher(FetchConfig(hosts=("*.example.org", "shop.com")))
    if fits:
        assert fetcher.checked(f"https://{host}/a.png").host
    else:
        with pytest.raises(Refused):
            fetcher.checked(f"https://{host}/a.png")


# forms of 127.0.0.1 that are names to a parser and addresses to the system
@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "017700000001", "127.1", "0177.0.0.1", "localhost", "0"])
def test_fetch__what_the_system_makes_a_loopback_address_of(host: str) -> None:
    async def work() -> None:
        fetcher = Fetcher(FetchConfig())
        with pytest.raises(RequestError) as caught:
            await fetcher.fetch(f"http://{host}/a.png")
        assert caught.value.code == "image_url_failed"
        await fetcher.close()

    asyncio.run(work())


async def image(request: web.Request) -> web.StreamResponse:
    return web.Response(body=PNG, content_type="image/png")


async def large(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    for _ in range(100):
        await answer.write(PNG[:1000] if _ == 0 else bytes(1000))
    return answer


async def slow(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(PNG[:10])
    await asyncio.sleep(5)
    return answer


async def packed(request: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(bytes(10_000_000)), headers={"content-encoding": "gzip"})


def redirect(where: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(where.replace("PORT", str(request.url.port)))

    return answer


def late(where: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        raise web.HTTPFound(where)

    return answer


def plain(**options: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(**options)

    return answer


ROUTES: dict[str, Any] = {
    "/image": image, "/large": large, "/slow": slow, "/packed": packed,
    "/text": plain(text="root:x:0:0"),
    "/empty": plain(),
    "/error": plain(status=500, body=PNG),
    "/there": redirect("/image"), "/far": redirect("http://other.example:PORT/image"), "/round": redirect("/round"),
    "/inside": redirect("http://inside.example:PORT/image"), "/literal": redirect("http://127.0.0.1:PORT/image"),
    "/late": late("/later"), "/later": late("/latest"), "/latest": late("/image"),
    "/file": redirect("file:///etc/passwd"), "/port": redirect("http://pub.example:1/image"), "/nowhere": redirect(""),
}  # fmt: skip


def fetch(path: str, addresses: dict[str, list[str]] | None = None, **options: Any) -> bytes:
    """Fetch from a server on this machine, which for once is part of the public internet, but for 127.0.0.9."""
    known = {"pub.example": ["127.0.0.1"], "other.example": ["127.0.0.1"], "inside.example": ["127.0.0.9"],
             **(addresses or {})}  # fmt: skip

    async def work() -> bytes:
        app = web.Application()
        for route, answer in ROUTES.items():
            app.router.add_get(route, answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]

        async def resolve(host: str, port: int) -> list[str]:
            return known[host]

        config = FetchConfig(ports=(port,), **{"total_seconds": 1.0, "max_bytes": 20_000, **options})
        fetcher = Fetcher(config, resolve=resolve, is_public=lambda address: address == "127.0.0.1" and not literal)
        literal = path == "/literal-host"
        try:
            host = "127.0.0.1" if literal else "pub.example"
            return await fetcher.fetch(path if "//" in path else f"http://{host}:{port}{path}")
        finally:
            await fetcher.close()
            await runner.cleanup()

    return asyncio.run(work())


@pytest.mark.parametrize("path", ["/image", "/there", "/far"])
def test_fetch(path: str) -> None:
    assert fetch(path) == PNG


@pytest.mark.parametrize(
    "path", ["/large", "/slow", "/packed", "/text", "/empty", "/error", "/round", "/inside", "/file", "/port",
             "/nowhere", "/missing", "/literal-host"]
)  # fmt: skip
def test_fetch__refusals_are_all_alike(path: str) -> None:
    with pytest.raises(RequestError) as caught:
        fetch(path)
    assert (caught.value.status, caught.value.code) == (400, "image_url_failed")
    assert str(caught.value) == "the image at this URL could not be fetched; send the image itself"


def test_fetch__redirects_have_an_end() -> None:
    with pytest.raises(RequestError):
        fetch("/there", max_redirects=0)


def test_fetch__redirects_share_the_time() -> None:
    assert fetch("/late") == PNG
    with pytest.raises(RequestError):
        fetch("/late", total_seconds=0.5)


@pytest.mark.parametrize("addresses", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1"], []])
def test_fetch__every_address_of_a_name_must_be_public(addresses: list[str]) -> None:
    with pytest.raises(RequestError):
        fetch("/image", {"pub.example": addresses})


def test_fetch__a_name_is_resolved_once_per_connection() -> None:
    """A name that is public when it is looked at and private when it is connected to: there is no second look."""
    asked = []

    async def work() -> None:
        async def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["203.0.113.7"] if len(asked) == 1 else ["127.0.0.1"]

        fetcher = Fetcher(FetchConfig(connect_seconds=0.2), resolve=resolve, is_public=lambda one: True)
        with pytest.raises(RequestError):
            await fetcher.fetch("http://rebinding.example/a.png")
        await fetcher.close()

    asyncio.run(work())
    assert asked == ["rebinding.example"]


def test_service__does_not_fetch_unless_it_is_told_to() -> None:
    body = {"input": ["http://127.0.0.1:9/a.png"]}
    with serving() as client:
        answer = client.post("/v1/embeddings", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "urls_disabled")
    with serving(urls={}) as client:
        answer = client.post("/v1/embeddings", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_url_failed")
        assert client.post("/v1/embed", content=PNG, headers=IMAGE_TYPE).status_code == 200
