"""What the server counts: `fintune.monitoring.metrics`, under the names the server's parts use."""

from __future__ import annotations

from fintune.monitoring.metrics import CONTENT_TYPE, METRICS, observe_batch

queue_length, batch_size, tokens, adapters = METRICS.queue, METRICS.batch, METRICS.tokens, METRICS.adapters
observe_request = METRICS.observe_http

__all__ = [
    "CONTENT_TYPE",
    "adapters",
    "batch_size",
    "observe_batch",
    "observe_request",
    "queue_length",
    "tokens",
]
