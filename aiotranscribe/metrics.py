"""What there is to measure of a transcriber, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# From one frame of a screen to the patience of a person.
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The measures of one transcriber: gauges are set when somebody looks, the rest as it happens.

    Each has its own registry, so that one process may run several transcribers.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.queued = Gauge(
            "aiotranscribe_jobs_queued", "Jobs that wait for a worker.", registry=registry
        )
        self.running = Gauge("aiotranscribe_jobs_running", "Jobs at work.", registry=registry)
        self.ended = Counter(
            "aiotranscribe_jobs_ended",
            "Jobs that have ended since the start, by status.",
            ["status"],
            registry=registry,
        )
        self.speed = Gauge(
            "aiotranscribe_speed",
            "Seconds of recording transcribed in a second, by all jobs at work together.",
            registry=registry,
        )
        self.watchers = Gauge(
            "aiotranscribe_watchers", "Those who watch jobs right now.", registry=registry
        )
        self.workers_ready = Gauge(
            "aiotranscribe_workers_ready", "Workers that have their model.", registry=registry
        )
        self.worker_restarts = Counter(
            "aiotranscribe_worker_restarts",
            "Workers that ended and were replaced.",
            registry=registry,
        )
        self.event_latency = Histogram(
            "aiotranscribe_event_latency_seconds",
            "From a worker's message to its frames, committed and published.",
            buckets=_BUCKETS,
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self._registry)
