"""Headless Chromium, driven by its DevTools protocol: pages as people meet them."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02
OPTIONS = (
    "--headless=new", "--remote-debugging-port=0", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--mute-audio", "--no-proxy-server", "--no-sandbox",  # it sees our own pages only
)  # fmt: skip


def executable() -> str:
    """The browser of this machine; the test is skipped if there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(NAMES)} is in PATH")
    return found


class Tab:
    """One page, and what it has asked for and complained about."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, count(1)
        self.requested: list[str] = []  # addresses
        self.complaints: list[str] = []  # errors of scripts and of the content security policy, console.error
        self.refused: list[int] = []  # statuses that the console tells of
        for domain in ("Runtime", "Page", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol. Raises AssertionError if the browser refuses it."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=PATIENCE_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self._note(message.get("method"), message.get("params", {}))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of what it promises."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in found, (expression[:400], found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """What an expression says as soon as that is true."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < until, (expression, self.complaints, self.evaluate("document.body.innerText"))
            time.sleep(POLL_SECONDS)
        return value

    def open(self, address: str) -> None:
        """Go there, and wait until its scripts have run."""
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address)})")

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        """Press the mouse at a place of an element, in shares of its size."""
        box = self.wait(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "if (!found) return null; found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = found.getBoundingClientRect(); return box.width ? [box.x, box.y, box.width, box.height] : null"
            "})()"
        )
        place = {"x": box[0] + box[2] * across, "y": box[1] + box[3] * down}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)

    def press(self, *keys: str) -> None:
        """Press keys one after another, by their names such as ArrowLeft."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Delete": 46}
        for key in keys:
            told = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **told, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Let an input of files have these."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def look(self, width: int, height: int = 800, *, scheme: str = "light", scale: float = 1) -> None:
        """Set the size of the window and the colour scheme that its owner prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
                  mobile=width < 600)  # fmt: skip
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(told["args"]))
        elif method == "Network.responseReceived" and told["response"]["status"] >= 400:
            self.refused.append(told["response"]["status"])
        elif method == "Log.entryAdded" and told["entry"]["source"] != "network":
            self.complaints.append(str(told["entry"]))


class Browser:
    """A browser that runs; its tabs share nothing with each other."""

    def __init__(self, address: str, connection: ClientConnection) -> None:
        self._address, self._connection, self._numbers = address, connection, count(1)

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """A new page, closed in the end."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        address = f"{self._address.partition('/devtools/')[0]}/devtools/page/{target}"
        with _protocol(address) as connection:
            yield Tab(connection)
        self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv(timeout=PATIENCE_SECONDS))).get("id") != number:
            pass
        assert "error" not in message, (method, message["error"])
        return dict(message["result"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in a folder; it is gone in the end, and the profile too."""
    profile = folder / "profile"
    command = [executable(), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        address = _address(process, profile / "DevToolsActivePort", folder / "chromium.log")
        with _protocol(address) as connection:
            yield Browser(address, connection)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _remove(profile)


def _protocol(address: str) -> ClientConnection:
    """A conversation, without whatever proxy the environment names."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname, place.port), timeout=PATIENCE_SECONDS)
    connection.settimeout(None)
    return connect(address, sock=connection, max_size=None, open_timeout=PATIENCE_SECONDS)


def _address(process: subprocess.Popen[bytes], file: Path, log: Path) -> str:
    """Where it listens, which it writes down when it does."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not file.exists() or len(lines := file.read_text().splitlines()) < 2:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < until, log.read_text(errors="replace")
        time.sleep(POLL_SECONDS)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"


def _remove(profile: Path) -> None:
    """Processes that were killed may write for a moment more."""
    until = time.monotonic() + PATIENCE_SECONDS
    while profile.exists() and time.monotonic() < until:
        shutil.rmtree(profile, ignore_errors=True)
        time.sleep(POLL_SECONDS)
