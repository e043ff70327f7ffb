"""One object for the service: an answer in, and everything that watches answers knows of it."""

from __future__ import annotations

import threading
import time
from typing import Any

from fintune.monitoring.drift import WINDOW, Window, compare
from fintune.monitoring.metrics import METRICS, Metrics
from fintune.monitoring.profile import Observation, Profile
from fintune.monitoring.store import Store
from fintune.tasks import Prediction

REFRESH_SECONDS = 30.0
"""How old the drift gauges may be when Prometheus reads them."""


class Recorder:
    """The window, the store (or None), the reference (or None) and the metrics of one process."""

    def __init__(
        self,
        reference: Profile | None = None,
        store: Store | None = None,
        *,
        metrics: Metrics = METRICS,
        window_size: int = WINDOW,
    ) -> None:
        self.reference, self.store, self.metrics = reference, store, metrics
        self.window = Window(window_size)
        self._refreshed = 0.0
        self._lock = threading.Lock()

    def record(
        self, task: str, text: str, prediction: Prediction, *, question: str | None = None, model: str = ""
    ) -> str | None:
        """Take note of an answer; the id under which it is kept, or None where it is not.

        The window holds numbers and hashed words alone; the text is written only by a store with consent.
        This waits for the disk where there is a store: call it from a worker thread.
        """
        if self.reference is not None and task in self.reference.tasks:
            seen = Observation.of(text, question, prediction.value, prediction.probabilities)
            self.window.add(task, seen)
        if self.store is None or not self.store.keep:
            return None
        return self.store.add_prediction(task, text, prediction, question=question, model=model)

    def report(self) -> dict[str, Any]:
        """The drift of this process's newest answers, and the live scores of all processes."""
        if self.reference is None:
            return {"tasks": {}, "live_scores": {}}
        report = compare(self.reference, self.window.tasks())
        report["live_scores"] = self.store.scores() if self.store is not None else {}
        return report

    def exposition(self) -> bytes:
        """What /metrics answers, with drift and live accuracy not older than REFRESH_SECONDS."""
        with self._lock:
            if time.monotonic() - self._refreshed > REFRESH_SECONDS or not self._refreshed:
                report = self.report()
                self.metrics.show_drift(report)
                self.metrics.show_accuracy(report["live_scores"])
                self._refreshed = time.monotonic()
        return self.metrics.render()
