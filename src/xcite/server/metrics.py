"""What a server counts, for Prometheus."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client import values as _values
from prometheus_client.multiprocess import MultiProcessCollector

from xcite.server.access import PATHS


def count_together(folder: str, worker: int) -> None:
    """Keep what this process counts in mapped files of ``folder``, beside the other workers'.

    To be called before a `Metrics` is made. Files are named by the worker's number, so a worker
    that is started again goes on with the counts of the one before it.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    _values.ValueClass = _values.MultiProcessValue(lambda: worker)


class Metrics:
    """Counters in a registry of their own, so that several servers can live in one process."""

    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

    def __init__(self, *, folder: str | None = None) -> None:
        """``folder`` is the one given to `count_together`; None where there is one process."""
        self._folder = folder
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "xcite_requests",
            "Requests answered",
            ["method", "path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "xcite_request_seconds",
            "Seconds from a request's headers to its answer",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.pictures = Counter(
            "xcite_pictures", "Pictures answered or refused", ["result"], registry=self.registry
        )
        self.batches = Histogram(
            "xcite_batch_pictures",
            "Pictures predicted together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "xcite_queue_pictures",
            "Places of the queue in use",
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self.waiting.set(0)  # the worker before may have ended with some in use
        Counter(
            "xcite_worker_starts", "Workers started, again included", registry=self.registry
        ).inc()

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; unknown paths and methods share a label, so that memory is bounded."""
        path = path if path in PATHS else "other"
        method = method if method in self.METHODS else "other"
        self.requests.labels(method, path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Everything counted, by all workers together, in Prometheus' text format."""
        if self._folder is None:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=self._folder)
        return generate_latest(together)
