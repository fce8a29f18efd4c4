"""What the service counts, as Prometheus text. Knows nothing of HTTP servers or Ray.

Counts of one ingress replica; the label `replica` keeps several apart where one scrape meets one
of them at a time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0 as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

# a click should take a tenth of a second, a propagation may take minutes
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0)


class Metrics:
    """Counters with a registry of their own, so that two apps of one process do not meet."""

    def __init__(self, replica: str) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._requests = Counter(
            "maskmill_requests",
            "Requests answered, by route and status.",
            ["replica", "method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "maskmill_request_seconds",
            "Seconds until the head of the answer, by route.",
            ["replica", "method", "route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._streams = Gauge(
            "maskmill_streams",
            "Streams of masks that are being sent.",
            ["replica"],
            registry=self._registry,
        )
        self._stream_ends = Counter(
            "maskmill_stream_ends",
            "Streams of masks by how they ended: whole, failed, abandoned by the caller.",
            ["replica", "end"],
            registry=self._registry,
        )
        for end in ("whole", "failed", "abandoned"):
            self._stream_ends.labels(replica, end)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(self._replica, method, route, str(status)).inc()
        self._seconds.labels(self._replica, method, route).observe(seconds)

    @contextmanager
    def stream(self) -> Iterator["StreamEnd"]:
        """Counts a stream while it runs; it was abandoned unless the block says otherwise."""
        end = StreamEnd()
        gauge = self._streams.labels(self._replica)
        gauge.inc()
        try:
            yield end
        finally:
            gauge.dec()
            self._stream_ends.labels(self._replica, end.how).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)


class StreamEnd:
    """How a stream ended."""

    def __init__(self) -> None:
        self.how = "abandoned"
        self.began_s = time.monotonic()
