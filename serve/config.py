"""The options of the service. Every limit is on unless it is raised, and none can be lifted by a client."""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mcbeit.config import Config, UserPath
from mcbeit.errors import ConfigError

MB = 2**20
KEYS_VARIABLE = "MCBEIT_API_KEYS"  # several, separated by commas
FormatName = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Limits(Config):
    """What one client, and all together, may ask for."""

    body_bytes: int = Field(32 * MB, ge=1024, le=1024 * MB)  # of one request, after inflation
    image_bytes: int = Field(10 * MB, ge=1024, le=256 * MB)
    bytes_in_flight: int = Field(512 * MB, ge=1024, le=64 * 1024 * MB)  # bodies of all requests
    pixels: int = Field(50_000_000, ge=1, le=89_000_000)  # of one image, by its header
    side: int = Field(16_384, ge=1, le=65_535)  # pixels, of the longer side
    aspect: float = Field(200, ge=1, le=65_535)  # of the longer to the shorter side
    pixels_in_flight: int = Field(
        100_000_000, ge=1
    )  # decoded at the same time, of all requests; up to 28 bytes of memory each
    large_pixels: int = Field(16_000_000, ge=1)  # images from here on take at most half of the threads that decode
    waiting_large: int = Field(16, ge=1, le=100_000)  # of them, that are not decoded yet
    items: int = Field(256, ge=1, le=4096)  # images of one request
    formats: tuple[FormatName, ...] = Field(("JPEG", "PNG", "WEBP", "GIF", "BMP"), min_length=1)
    waiting_items: int = Field(1024, ge=1, le=100_000)  # images of all requests that are not answered
    waiting_seconds: Seconds = 5.0  # what they may take by the rate that was measured
    request_seconds: Seconds = 60.0  # from the header to the answer
    body_seconds: Seconds = 15.0  # for a body to arrive
    header_seconds: Seconds = 10.0  # for the header of a request to arrive
    header_bytes: int = Field(64 * 1024, ge=1024, le=MB)  # of one request, and of what comes behind a chunked body
    connections: int = Field(2048, ge=1, le=100_000)

    @model_validator(mode="after")
    def _fits_together(self) -> "Limits":
        if self.pixels_in_flight < self.pixels:
            raise ValueError(f"pixels_in_flight {self.pixels_in_flight} must hold one image of {self.pixels} pixels")
        if self.bytes_in_flight < self.body_bytes:
            raise ValueError(f"bytes_in_flight {self.bytes_in_flight} must hold one body of {self.body_bytes} bytes")
        return self


class FetchConfig(Config):
    """Which images are fetched by URL, and how long that may take."""

    hosts: tuple[str, ...] = ()  # names, or *.example.org for all below; none: every host on the public internet
    ports: tuple[Annotated[int, Field(ge=1, le=65_535)], ...] = (80, 443)
    max_bytes: int = Field(10 * MB, ge=1024, le=256 * MB)
    connect_seconds: float = Field(2.0, gt=0, le=60)
    total_seconds: float = Field(5.0, gt=0, le=60)  # redirects included
    max_redirects: int = Field(3, ge=0, le=3)  # each is looked at as the first address is
    per_host: int = Field(4, ge=1, le=64)  # at the same time
    at_once: int = Field(16, ge=1, le=256)


class BatchConfig(Config):
    """How images of all requests are put together for the model."""

    max_size: int = Field(32, ge=1, le=1024)
    max_seconds: Seconds = 0.5  # a batch is smaller if it would take longer, as a slow model's would
    pad: bool | None = None  # up to the next power of two; default: on a GPU, where shapes should be few


class RayConfig(Config):
    """How Ray Serve runs the service; not used with --plain."""

    replicas: int = Field(1, ge=1, le=10_000)  # processes, each with all models
    max_replicas: int | None = Field(None, ge=1, le=10_000)  # more of them while many requests are under way
    target_requests: float = Field(16.0, gt=0)  # under way per replica, that autoscaling aims at
    upscale_seconds: float = Field(10.0, ge=0)
    downscale_seconds: float = Field(300.0, ge=0)
    cpus: float | None = Field(None, gt=0)  # per replica; default: this machine's cores shared out, elsewhere 2
    gpus: float = Field(0.0, ge=0)  # per replica
    index_resource: str | None = None  # a custom resource of the one node that has the folder of indices
    address: str | None = None  # of a cluster that is there, or auto; default: one of this machine, for this service
    haproxy: bool = True  # the proxy written in C, on Linux; Ray's own, in Python, adds 13 ms or more per request

    @model_validator(mode="after")
    def _fits_together(self) -> "RayConfig":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        return self


class ServeConfig(Config):
    """Everything about one service."""

    models: tuple[str, ...] = ()  # exported folders, or fake; NAME=FOLDER gives another name
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)  # 0: any that is free
    image_size: int | None = Field(None, ge=1)  # of an export with several
    provider: str | None = None  # of ONNX Runtime: cpu, cuda, ...
    threads: int | None = Field(None, ge=1)  # of one inference; default: the cores of this process
    decode_threads: int | None = Field(None, ge=1, le=256)  # default: the cores of this process
    jpeg_draft: bool = False  # decode large JPEGs at a fraction: faster, other numbers, another fingerprint
    batch: BatchConfig = BatchConfig()
    limits: Limits = Limits()
    cache_bytes: int = Field(64 * MB, ge=0, le=64 * 1024 * MB)  # vectors that are kept; 0: none
    canary_seconds: Seconds = 10.0  # an idle model is tried that often
    api_keys_file: UserPath | None = None  # a key per line; more come from MCBEIT_API_KEYS
    insecure: bool = False  # listen beyond this machine without a key
    cors_origins: tuple[str, ...] = ()  # of pages that may call it, as https://shop.example
    urls: FetchConfig | None = None  # images by URL; urls={} turns them on
    indexes: UserPath | None = None  # a folder; turns /v1/indexes on
    ray: RayConfig = RayConfig()
    drain_seconds: Seconds = 30.0  # for requests that were accepted, when it is asked to stop
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False  # a line per request
    tracing: bool = False  # a span per request to OpenTelemetry, which OTEL_* variables set up

    @model_validator(mode="after")
    def _names_a_model(self) -> "ServeConfig":
        if not self.models:
            raise ValueError("no model: name a folder that `mcbeit export` wrote, or --fake for an encoder without one")
        return self


def api_keys(config: ServeConfig, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of which a request must have one; none: everybody may ask. Raises ConfigError for a file without any."""
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",")]
    if config.api_keys_file is not None:
        try:
            lines = Path(config.api_keys_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file '{config.api_keys_file}' cannot be read: {error}") from error
        from_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not from_file:
            raise ConfigError(f"api_keys_file '{config.api_keys_file}' holds no key; write one per line")
        keys += from_file
    return tuple(dict.fromkeys(key for key in keys if key))


def check_exposure(config: ServeConfig, keys: tuple[str, ...]) -> None:
    """Raise ConfigError if others than this machine could ask without a key."""
    if keys or config.insecure or is_loopback(config.host):
        return
    raise ConfigError(
        f"host={config.host} lets other machines in, and there is no API key: set {KEYS_VARIABLE} or api_keys_file, or "
        "say insecure=true if something in front of it asks for one"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
