"""The metrics that Prometheus reads: one registry, filled by the service.

Labels are few by design: task names, a task's own labels and fixed words, never a text, key or address.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from fintune import __version__
from fintune.tasks import Prediction

Outcome = Literal["ok", "invalid", "overloaded", "timeout", "cancelled", "unavailable", "error"]
STATUSES = {"too few": -1, "stable": 0, "watch": 1, "drift": 2}
"""The value of `fintune_drift_status`."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics of one process; the service uses `METRICS`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new: Any = {"registry": self.registry}
        info = Gauge("fintune_build_info", "1, with the version as a label", ["version"], **new)
        info.labels(__version__).set(1)
        self.requests = Counter(
            "fintune_requests", "Requests answered or refused, by outcome", ["task", "outcome"], **new
        )
        self.http_requests = Counter(
            "fintune_http_requests", "HTTP requests by route and status", ["route", "status"], **new
        )
        self.http_seconds = Histogram(
            "fintune_http_request_seconds", "HTTP requests by route", ["route"], buckets=_SECONDS, **new
        )
        self.adapters = Gauge("fintune_adapters_loaded", "Adapters in memory", **new)
        self.seconds = Histogram(
            "fintune_request_seconds", "From arrival to answer", ["task"], buckets=_SECONDS, **new
        )
        self.wait = Histogram(
            "fintune_queue_seconds",
            "From arrival to the start of its batch",
            ["task"],
            buckets=_SECONDS,
            **new,
        )
        self.queue = Gauge("fintune_queue_length", "Requests that wait for a batch", **new)
        self.in_flight = Gauge("fintune_requests_in_flight", "Requests not yet answered", **new)
        self.batch = Histogram("fintune_batch_size", "Requests in a batch", ["task"], buckets=_SIZES, **new)
        self.batch_seconds = Histogram(
            "fintune_batch_seconds", "Computing time of a batch", ["task"], buckets=_SECONDS, **new
        )
        self.tokens = Counter(
            "fintune_tokens",
            "Tokens: prompt, cached (prompt not computed again), completion",
            ["task", "kind"],
            **new,
        )
        self.cache = Counter("fintune_cache_lookups", "Prefix cache: hit or miss", ["result"], **new)
        self.answers = Counter("fintune_answers", "Answers of classification tasks", ["task", "label"], **new)
        self.values = Histogram(
            "fintune_predicted_value",
            "Predicted numbers, in the task's unit",
            ["task"],
            buckets=(-5, -3, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 3, 5),
            **new,
        )
        self.confidence = Histogram(
            "fintune_confidence", "Probability of the chosen candidate", ["task"], buckets=_CONFIDENCES, **new
        )
        self.input_tokens = Histogram(
            "fintune_input_tokens", "Tokens of a prompt", ["task"], buckets=_TOKENS, **new
        )
        self.psi = Gauge(
            "fintune_drift_psi", "Population stability index against the reference", ["task", "signal"], **new
        )
        self.divergence = Gauge(
            "fintune_drift_js", "Jensen-Shannon divergence, in bits", ["task", "signal"], **new
        )
        self.status = Gauge(
            "fintune_drift_status", "-1 too few answers, 0 stable, 1 watch, 2 drift", ["task"], **new
        )
        self.accuracy = Gauge(
            "fintune_live_accuracy", "Share of answers that feedback calls right", ["task"], **new
        )
        self.feedback = Counter("fintune_feedback", "Feedback received", ["task", "verdict"], **new)
        self.store_failures = Counter(
            "fintune_store_failures",
            "What the store failed to do: keep an answer, judge (the live accuracy)",
            ["operation"],
            **new,
        )
        self.store_up = Gauge("fintune_store_up", "1 while answers can be kept, 0 while they cannot", **new)
        self.store_waiting = Gauge("fintune_store_waiting", "Answers that wait to be kept", **new)

    def observe_request(
        self,
        task: str,
        seconds: float,
        outcome: Outcome = "ok",
        *,
        prediction: Prediction | None = None,
        input_tokens: int | None = None,
        cached_tokens: int = 0,
        completion_tokens: int = 0,
        queue_seconds: float | None = None,
    ) -> None:
        """Count one request.

        Args:
            task: a name that the service knows; pass "unknown" for others, because names are kept forever.
            seconds: from arrival to answer or refusal. Only answers enter the latency histogram.
            prediction: the answer; its label or number and its confidence are counted.
            input_tokens: tokens of the whole prompt, of which `cached_tokens` were not computed again.
        """
        self.requests.labels(task, outcome).inc()
        if outcome == "ok":
            self.seconds.labels(task).observe(seconds)
        if queue_seconds is not None:
            self.wait.labels(task).observe(queue_seconds)
        if input_tokens is not None:
            self.observe_tokens(task, input_tokens, cached_tokens, completion_tokens)
        if prediction is not None:
            self._observe_answer(task, prediction)

    def observe_tokens(self, task: str, prompt: int, cached: int = 0, completion: int = 0) -> None:
        """Count one request's tokens: of the prompt, of its `cached` part, and of the completion."""
        self.input_tokens.labels(task).observe(prompt)
        self.tokens.labels(task, "prompt").inc(prompt)
        if cached:
            self.tokens.labels(task, "cached").inc(cached)
        if completion:
            self.tokens.labels(task, "completion").inc(completion)

    def _observe_answer(self, task: str, prediction: Prediction) -> None:
        if isinstance(prediction.value, int | float):
            self.values.labels(task).observe(prediction.value)
        if prediction.probabilities:
            self.confidence.labels(task).observe(max(prediction.probabilities.values()))
            if prediction.value in prediction.probabilities:
                self.answers.labels(task, str(prediction.value)).inc()

    def observe_http(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request; `route` is the pattern (/v1/tasks/{task}), never the path itself."""
        self.http_requests.labels(route, str(status)).inc()
        self.http_seconds.labels(route).observe(seconds)

    def observe_batch(self, task: str, size: int, seconds: float) -> None:
        """Count one batch of `size` requests that took `seconds` to compute."""
        self.batch.labels(task).observe(size)
        self.batch_seconds.labels(task).observe(seconds)

    def observe_cache(self, hit: bool, times: int = 1) -> None:
        """Count prefix cache lookups."""
        self.cache.labels("hit" if hit else "miss").inc(times)

    def show_drift(self, report: Mapping[str, Any]) -> None:
        """Set the gauges from a report of `drift.compare`."""
        for task, entry in report["tasks"].items():
            self.status.labels(task).set(STATUSES[entry["status"]])
            for signal, found in entry["signals"].items():
                for gauge, value in ((self.psi, found["psi"]), (self.divergence, found["js"])):
                    if value is not None:
                        gauge.labels(task, signal).set(value)

    def show_accuracy(self, scores: Mapping[str, Mapping[str, Any]]) -> None:
        """Set the live accuracy from `Store.scores`."""
        for task, entry in scores.items():
            if entry["accuracy"] is not None:
                self.accuracy.labels(task).set(entry["accuracy"])

    def show_writer(self, state: Mapping[str, Any]) -> None:
        """Set the store's gauges from `Writer.state`."""
        self.store_up.set(state["state"] == "ok")
        self.store_waiting.set(state["waiting"])

    def render(self) -> bytes:
        """The metrics in text format, to be sent with `CONTENT_TYPE`."""
        return generate_latest(self.registry)


METRICS = Metrics()

__all__ = ["CONTENT_TYPE", "METRICS", "STATUSES", "Metrics", "Outcome"]
