"""The service under uvicorn, in one process and without Ray: laptops, tests, one machine."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mcbeit.errors import ConfigError
from mcbeit.serve.app import build_app
from mcbeit.serve.config import Limits, ServeConfig, check_exposure
from mcbeit.serve.service import Service

KEEP_ALIVE_SECONDS = 75
START_SECONDS = 60.0


class PlainServer:
    """A service that is loaded and listens; `serve` answers until it is asked to stop.

    Raises ConfigError if the address is taken or must not be listened at, and what loading models raises.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.service = Service(config)
        check_exposure(config, self.service.keys)
        self.socket = listen(config.host, config.port)
        self.port: int = self.socket.getsockname()[1]
        self._server = _Server(self.service, uvicorn.Config(
            build_app(config, self.service), http=_protocol(config.limits), ws="none", lifespan="on",
            log_config=None, access_log=False, server_header=False, limit_concurrency=config.limits.connections,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=int(config.drain_seconds) + 1,
            backlog=min(config.limits.connections, 2048),
        ))  # fmt: skip

    @property
    def address(self) -> str:
        """Where it is to be asked."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}"

    def serve(self) -> None:
        """Answer until SIGINT or SIGTERM, or until `stop`; then answer what was accepted, and return."""
        self._server.run(sockets=[self.socket])

    def stop(self) -> None:
        """Take no more requests; from any thread."""
        self._server.ask_to_stop()

    @contextmanager
    def in_background(self) -> Iterator["PlainServer"]:
        """Serve from a thread while the caller does something else."""
        thread = threading.Thread(target=self.serve, name="serve", daemon=True)
        thread.start()
        try:
            self._wait_until_started(thread)
            yield self
        finally:
            self.stop()
            thread.join()

    def _wait_until_started(self, thread: threading.Thread) -> None:
        while not self._server.started:
            if not thread.is_alive():
                raise ConfigError("the service ended before it was ready; its log says why")
            thread.join(0.005)


class _Server(uvicorn.Server):
    """uvicorn, which tells the service of a signal at once, and for which a signal is no failure."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service

    def ask_to_stop(self) -> None:
        """Answer what was accepted, and end."""
        self._service.is_draining = True
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn; SIGHUP loads the models anew."""
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        await super().serve(sockets)

    def _reload(self) -> None:
        self._reloading = asyncio.create_task(self._service.reload_all())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks, the second does not wait."""
        self.force_exit = self.should_exit
        self.ask_to_stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError if the address is taken or is not of this machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port} cannot be listened at: {error.strerror}; name another port, or port=0 for any"
        ) from error
    found.setblocking(False)
    return found


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    """HTTP as uvicorn speaks it, that hangs up on clients whose headers take too long, or are too long."""

    class BoundedHeaders(HttpToolsProtocol):
        deadline: asyncio.TimerHandle | None = None  # there is one while a header is on its way
        header_bytes = unfinished_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.deadline is not None:
                self.unfinished_bytes += len(data)
                self._check(self.unfinished_bytes)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start()

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)  # of those behind a chunked body, too
            self.header_bytes += len(name) + len(value)
            self._check(self.header_bytes)

        def on_headers_complete(self) -> None:
            self._end()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _start(self) -> None:
            self._end()
            self.deadline = self.loop.call_later(limits.header_seconds, self._hang_up, "did not end its header in time")

        def _check(self, count: int) -> None:
            if count > limits.header_bytes:
                self._hang_up("sent too long a header")

        def _end(self) -> None:
            self.header_bytes = self.unfinished_bytes = 0
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def _hang_up(self, reason: str) -> None:
            if not self.transport.is_closing():
                logging.getLogger("mcbeit.serve").info("a client %s", reason)
                self.transport.close()

    return BoundedHeaders
