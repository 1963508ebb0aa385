"""What Prometheus is told: per stage, per batch, per reason of refusal."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mcbeit.serve.timings import Timings

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The numbers of one service, in a registry of its own: two services in a process do not mix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mcbeit_requests", "Requests that were answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "mcbeit_request_seconds", "From header to answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.stages = Histogram(
            "mcbeit_stage_seconds", "Per stage of a request", ["stage"], buckets=SECONDS, registry=self.registry
        )
        self.rejected = Counter("mcbeit_rejected", "Refusals by reason", ["code"], registry=self.registry)
        self.images = Counter("mcbeit_images", "Images that were embedded", ["model", "cached"], registry=self.registry)
        self.batches = Histogram(
            "mcbeit_batch_size", "Images per batch", ["model"], buckets=SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "mcbeit_batch_seconds", "Per batch", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.items = Gauge("mcbeit_items_in_flight", "Images that are not answered", registry=self.registry)
        self.bytes = Gauge("mcbeit_bytes_in_flight", "Bytes of bodies in memory", registry=self.registry)
        self.cached_bytes = Gauge("mcbeit_cache_bytes", "Bytes of vectors that are kept", registry=self.registry)
        self.ready = Gauge("mcbeit_ready", "1 if the service is ready", registry=self.registry)
        self.last_inference = Gauge(
            "mcbeit_last_inference_age_seconds", "Since the model last gave numbers", ["model"], registry=self.registry
        )

    def answered(self, route: str, status: int, timings: Timings) -> None:
        """One request is done."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(timings.total)
        for stage, seconds in timings.seconds.items():
            self.stages.labels(stage).observe(seconds)

    def batch(self, model: str, size: int, seconds: float) -> None:
        """One batch is done."""
        self.batches.labels(model).observe(size)
        self.batch_seconds.labels(model).observe(seconds)

    def text(self) -> bytes:
        """In the format of Prometheus."""
        return generate_latest(self.registry)
