"""Images by URL, from the public internet and from nowhere else.

A service that fetches what strangers name is a way into the network that it stands in. So: one parser (yarl, which
aiohttp uses itself), http and https on few ports, every address that a name resolves to must be public, the connection
goes to an address that was looked at (names that resolve anew are no way around), redirects are looked at like the
first address, no proxy from the environment, and one text for every failure: nobody learns which ports are open.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mcbeit.image_files import format_of
from mcbeit.serve.config import FetchConfig
from mcbeit.serve.errors import RequestError

LOGGER = logging.getLogger("mcbeit.serve")
SCHEMES = ("http", "https")
MAX_URL = 4096  # characters
PIECE = 64 * 1024
NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
NEVER = (  # which `is_global` of some versions of Python lets through
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("::/96"),
    ipaddress.ip_network("100::/64"),
    ipaddress.ip_network("2001::/23"),
    ipaddress.ip_network("5f00::/16"),
    ipaddress.ip_network("fec0::/10"),
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]  # host, port -> addresses


class Refused(Exception):
    """Why an image is not fetched; for the log only."""


class Fetcher:
    """Fetches images. `resolve` and `is_public` are those of the real world unless a test says otherwise."""

    def __init__(
        self, config: FetchConfig, *, resolve: Resolve | None = None, is_public: Callable[[str], bool] | None = None
    ) -> None:
        self.config = config
        self._is_public = is_public or is_public_address
        self._session: aiohttp.ClientSession | None = None
        self._resolver = _Pinned(resolve or _resolve, self._is_public)

    async def fetch(self, url: str) -> bytes:
        """The image at an address. Raises RequestError, the same for every reason."""
        try:
            async with asyncio.timeout(self.config.total_seconds):  # aiohttp's own begins anew with each redirect
                return await self._follow(url)
        except (Refused, aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            LOGGER.info("an image was not fetched: %s: %s", type(error).__name__, error)
            raise RequestError(
                400, "image_url_failed", "the image at this URL could not be fetched; send the image itself"
            ) from error

    async def close(self) -> None:
        """Let its connections go."""
        if self._session is not None:
            await self._session.close()

    async def _follow(self, text: str) -> bytes:
        url = self.checked(text)
        for _ in range(self.config.max_redirects + 1):
            async with self._opened().get(url, allow_redirects=False) as answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    return await self._body(answer)
                url = self.checked(str(url.join(URL(answer.headers.get("location", "")))))
        raise Refused(f"more than {self.config.max_redirects} redirects")

    def checked(self, text: str) -> URL:
        """The address, if it may be asked at all. Raises Refused."""
        if len(text) > MAX_URL or "\\" in text or any(ord(letter) < 33 for letter in text):
            raise Refused("too long, or with letters that parsers read differently")
        url = URL(text)
        host = (url.raw_host or "").lower()
        if url.scheme not in SCHEMES or not host or url.user is not None or url.password is not None:
            raise Refused("not a plain http or https address")
        if url.port not in self.config.ports:
            raise Refused(f"port {url.port}")
        if self.config.hosts and not any(_matches(host.rstrip("."), name.lower()) for name in self.config.hosts):
            raise Refused(f"the host {host} is not among those allowed")
        if _is_literal(host) and not self._is_public(host):  # which no resolver will see
            raise Refused(f"{host} is not public")
        return url

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status != 200:
            raise Refused(f"status {answer.status}")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("a packed body, which was not asked for")
        found = bytearray()
        async for piece in answer.content.iter_chunked(PIECE):
            found += piece
            if len(found) > self.config.max_bytes:
                raise Refused(f"more than {self.config.max_bytes} bytes")
        if format_of(bytes(found[:64])) == "NPY":
            raise Refused("not an image")
        return bytes(found)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            config = self.config
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._resolver, use_dns_cache=False, limit=config.at_once, limit_per_host=config.per_host,
                    force_close=True,
                ),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.connect_seconds),
                headers={"accept": "image/*", "accept-encoding": "identity", "user-agent": "mcbeit"},
                cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=False,
            )  # fmt: skip
        return self._session


class _Pinned(AbstractResolver):
    """Resolves a name once per connection, and gives aiohttp addresses that were looked at, or none at all."""

    def __init__(self, resolve: Resolve, is_public: Callable[[str], bool]) -> None:
        self._resolve, self._is_public = resolve, is_public

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = await self._resolve(host, port)
        if not addresses or not all(map(self._is_public, addresses)):
            raise Refused(f"{host} is not, or not only, public: {', '.join(addresses)}")
        return [
            ResolveResult(
                hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            )
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def is_public_address(text: str) -> bool:
    """Whether it is an address of the public internet, in whatever form an IPv4 address is wrapped."""
    try:
        address: Any = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return False
    inner = _unwrapped(address)
    if inner is not None:
        return is_public_address(str(inner))
    if any(address in network for network in NEVER if network.version == address.version):
        return False
    return bool(address.is_global) and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
        or address.is_link_local or address.is_private
    )  # fmt: skip


def _unwrapped(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside an IPv6 one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if any(address in network for network in NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _matches(host: str, name: str) -> bool:
    return host.endswith(name[1:]) and host != name[2:] if name.startswith("*.") else host == name
