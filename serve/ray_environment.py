"""What Ray Serve is told by environment variables, which it reads when it is imported."""

import contextlib
import socket
import sys
from pathlib import Path

from mcbeit.serve.config import RayConfig

PORTS = (
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
)
DRAIN_SECONDS = "1"  # that a replica waits for the proxy to forget it; more only helps behind another load balancer


def serve_environment(config: RayConfig, folder: Path) -> dict[str, str]:
    """The variables for a service on this machine, whose files are to be in `folder`.

    Ports are taken from those that are free: two services on one machine would share Ray's fixed one of its own proxy,
    to which HAProxy turns while no replica is there, and answer for each other. Those of HAProxy's own statistics are
    open to all interfaces, whatever host the service has; docs/serve-cluster.md says how to close them.
    """
    found = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DRAIN_SECONDS,
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a killed proxy is soon replaced
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    }
    if not config.haproxy or sys.platform != "linux":
        return {**found, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    found |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),  # short: Ray adds 57 letters, and 97 may be all
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
    }
    return found | {name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}


def free_port() -> int:
    """A port of this machine that nobody listened at a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]
