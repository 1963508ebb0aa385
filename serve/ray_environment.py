"""What Ray Serve is told by environment variables, which it reads when it is imported."""

import socket
import sys
from pathlib import Path

from mcbeit.serve.config import RayConfig

DRAIN_SECONDS = "1"  # that a replica waits for the proxy to forget it; more only helps behind another load balancer


def serve_environment(config: RayConfig, folder: Path) -> dict[str, str]:
    """The variables for a service on this machine, whose files are to be in `folder`.

    The ports of HAProxy's own statistics are open to all interfaces, whatever host the service has; so they are taken
    from those that are free, and docs/serve-cluster.md says how to close them.
    """
    found = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DRAIN_SECONDS,
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a killed proxy is soon replaced
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "2",
    }
    if not config.haproxy or sys.platform != "linux":
        return {**found, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    return found | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),  # short: Ray adds 57 letters, and 97 may be all
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
    }


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listened at a moment ago."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
