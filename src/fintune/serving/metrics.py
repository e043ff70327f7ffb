"""The server's counters in Prometheus's text format. Labels are names this server knows, never a client's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

REGISTRY = CollectorRegistry()
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

requests = Counter(
    "fintune_requests", "Requests by route and status.", ("route", "status"), registry=REGISTRY
)
seconds = Histogram(
    "fintune_request_seconds", "From request to answer.", ("route",), buckets=_SECONDS, registry=REGISTRY
)
queue_length = Gauge("fintune_queue_length", "Records that wait for the model.", registry=REGISTRY)
batch_size = Histogram(
    "fintune_batch_size",
    "Records computed together.",
    ("task",),
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
batch_seconds = Histogram(
    "fintune_batch_seconds", "Computing a batch.", ("task",), buckets=_SECONDS, registry=REGISTRY
)
tokens = Counter("fintune_tokens", "Tokens of chats and completions, by kind.", ("kind",), registry=REGISTRY)
labels = Counter("fintune_labels", "Labels answered.", ("task", "label"), registry=REGISTRY)
adapters = Gauge("fintune_adapters_loaded", "Adapters in memory.", registry=REGISTRY)


def observe_request(route: str, status: int, taken: float) -> None:
    """Count a request that has its answer; `taken` in seconds."""
    requests.labels(route, str(status)).inc()
    seconds.labels(route).observe(taken)


def observe_batch(task: str, records: int, taken: float) -> None:
    """Count records that were computed together; `taken` in seconds."""
    batch_size.labels(task).observe(records)
    batch_seconds.labels(task).observe(taken)


def text() -> bytes:
    """All of them, as /metrics has it."""
    return generate_latest(REGISTRY)
