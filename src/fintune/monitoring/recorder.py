"""One object for the service: an answer in, and everything that watches answers knows of it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.errors import ConfigError
from fintune.monitoring.drift import WINDOW, Window, compare
from fintune.monitoring.metrics import METRICS, Metrics
from fintune.monitoring.profile import NAME as PROFILE
from fintune.monitoring.profile import Observation, Profile
from fintune.monitoring.store import Store, reason
from fintune.tasks import Prediction

log = logging.getLogger("fintune.monitoring")

REFRESH_SECONDS = 30.0
"""How old the drift gauges may be when Prometheus reads them."""
_LOST = {
    "keep": "answers go out without an id, and feedback on them is not possible",
    "judge": "the live accuracy is not brought up to date",
}
"""What a failing store means, by operation."""


class Recorder:
    """The window, the store (or None), the reference (or None) and the metrics of one process."""

    def __init__(
        self,
        reference: Profile | None = None,
        store: Store | None = None,
        *,
        model: str | None = None,
        metrics: Metrics = METRICS,
        window_size: int = WINDOW,
    ) -> None:
        """All may be left out.

        Args:
            model: the one that the reference is of; answers of others are kept, but no part of drift. None:
                there are no others.
        """
        self.reference, self.store, self.model, self.metrics = reference, store, model, metrics
        self.window = Window(window_size)
        self._refreshed = 0.0
        self._lock = threading.Lock()
        self._failing: set[str] = set()

    @classmethod
    def from_environment(
        cls, adapter: str | Path | None, metrics: Metrics = METRICS, *, model: str | None = None
    ) -> Recorder:
        """The recorder of a service.

        FINTUNE_STORE is the store's URL; without it there is none. FINTUNE_KEEP_PREDICTIONS=1 is the consent
        to keep texts and answers in it. The reference is the adapter's profile, if it has one, and `model`
        the adapter's name among several.

        Raises:
            ConfigError: FINTUNE_KEEP_PREDICTIONS is not 0 or 1, or is 1 without a store.
            DataError: the store cannot be opened, or the profile not be read.
        """
        url, consent = os.environ.get("FINTUNE_STORE"), os.environ.get("FINTUNE_KEEP_PREDICTIONS") or "0"
        if consent not in ("0", "1"):
            raise ConfigError(f"FINTUNE_KEEP_PREDICTIONS must be 0 or 1, got {consent!r}")
        if consent == "1" and not url:
            raise ConfigError("FINTUNE_KEEP_PREDICTIONS=1 needs FINTUNE_STORE, the URL of the store")
        store = Store.open(url, keep=consent == "1") if url else None
        profiled = adapter is not None and (Path(adapter) / PROFILE).is_file()
        reference = Profile.load(adapter) if adapter and profiled else None
        return cls(reference, store, model=model, metrics=metrics)

    def record(
        self, task: str, text: str, prediction: Prediction, *, question: str | None = None, model: str = ""
    ) -> str | None:
        """Take note of an answer; the id under which it is kept, or None where it is not, or cannot be.

        The window holds numbers and hashed words alone; the text is written only by a store with consent.
        This waits for the disk where there is a store: call it from a worker thread.
        """
        own = self.model is None or model in ("", self.model)
        if own and self.reference is not None and task in self.reference.tasks:
            seen = Observation.of(text, question, prediction.value, prediction.probabilities)
            self.window.add(task, seen)
        if self.store is None or not self.store.keep:
            return None
        name = None
        with self._watched("keep"):
            name = self.store.add_prediction(task, text, prediction, question=question, model=model)
        return name

    @contextlib.contextmanager
    def _watched(self, operation: str) -> Iterator[None]:
        """Whatever the store fails at ends here, counted: an answer that was computed must go out.

        A failure is logged once, and again when the store has worked meanwhile: not with every answer.
        """
        try:
            yield
        except Exception as error:
            self.metrics.store_failures.labels(operation).inc()
            if operation not in self._failing:
                self._failing.add(operation)
                log.error("FINTUNE_STORE fails, so %s: %s", _LOST[operation], reason(error))
        else:
            if operation in self._failing:
                self._failing.discard(operation)
                log.warning("FINTUNE_STORE works again")

    def report(self) -> dict[str, Any]:
        """The drift of this process's newest answers, and the model's live scores of all processes.

        The scores are {} where there is no store, or it fails.
        """
        report = compare(self.reference, self.window.tasks()) if self.reference else {"tasks": {}}
        report["live_scores"] = {}
        if self.store is not None:
            with self._watched("judge"):
                report["live_scores"] = self.store.live_scores(self.model)
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
