"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters in a registry of their own, so that several servers can live in one process."""

    PATHS = frozenset(
        {"/", "/page.css", "/page.js", "/languages/zh.json", "/docs", "/openapi.json"}
        | {"/predict", "/health", "/info", "/metrics"}
    )
    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

    def __init__(self) -> None:
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
            "xcite_queue_pictures", "Places of the queue in use", registry=self.registry
        )

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; unknown paths and methods share a label, so that memory is bounded."""
        path = path if path in self.PATHS else "other"
        method = method if method in self.METHODS else "other"
        self.requests.labels(method, path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Everything counted, in Prometheus' text format."""
        return generate_latest(self.registry)
