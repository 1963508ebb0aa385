"""The service in a test: real HTTP on a free port, models that do as they are told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np

from mcbeit.config import validate
from mcbeit.encoder import PixelEncoder
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.serve.config import ServeConfig
from mcbeit.serve.model import ServedModel
from mcbeit.serve.plain import PlainServer

IMAGE_TYPE = {"content-type": "image/png"}


class HeldEncoder(FakeEncoder):
    """Computes when it is let, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.entered = threading.Event(), threading.Event()
        self.may_go.set()
        self.sizes: list[int] = []

    def compute(self, pixels: np.ndarray, *, patches: bool = False) -> np.ndarray:
        self.entered.set()
        assert self.may_go.wait(60)
        self.sizes.append(len(pixels))
        return super().compute(pixels, patches=patches)

    def hold(self) -> None:
        """From the next batch on, wait."""
        self.entered.clear()
        self.may_go.clear()


def serve_config(**options: Any) -> ServeConfig:
    """A service of the fake encoder on a free port."""
    return validate(ServeConfig, {"models": ("fake",), "port": 0, **options})


@contextmanager
def serving(encoder: PixelEncoder | None = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of a service that runs in here; `client.server` is the server. Another encoder than the fake one may
    take its place.
    """
    server = PlainServer(serve_config(**options))
    if encoder is not None:
        server.service.models["fake"] = ServedModel(
            "fake", "fake", encoder, server.config, server.service.models["fake"].shared
        )
    with server.in_background(), httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        client.server = server  # type: ignore[attr-defined]
        yield client
