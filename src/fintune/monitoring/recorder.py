"""Records each answer of the service for everything that monitors answers."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from fintune.errors import ConfigError
from fintune.monitoring.database import PATIENCE, SilentError, reason
from fintune.monitoring.drift import Window, compare
from fintune.monitoring.metrics import METRICS, Metrics
from fintune.monitoring.profile import NAME as PROFILE
from fintune.monitoring.profile import Observation, Profile
from fintune.monitoring.store import Store, prediction_row
from fintune.monitoring.writer import Writer
from fintune.tasks import Prediction

log = logging.getLogger("fintune.monitoring")

REFRESH_SECONDS = 30.0
"""The oldest that the drift gauges may be when Prometheus reads them."""


class Recorder:
    """One process's window, store (or None), reference (or None) and metrics."""

    def __init__(
        self,
        reference: Profile | None = None,
        store: Store | None = None,
        *,
        model: str | None = None,
        metrics: Metrics = METRICS,
    ) -> None:
        """All may be left out.

        Args:
            model: the model of the reference; other models' answers are stored but excluded from drift. None:
                there are no others.
        """
        self.reference, self.store, self.model, self.metrics = reference, store, model, metrics
        self.window = Window()
        self.writer = Writer(store, metrics) if store is not None and store.keep else None
        """Writes answers to the store; None if none are stored."""
        self._refreshed = 0.0
        self._lock = threading.Lock()
        self._judging: threading.Thread | None = None
        self._unjudged = False

    @classmethod
    def from_environment(
        cls, adapter: str | Path | None, metrics: Metrics = METRICS, *, model: str | None = None
    ) -> Recorder:
        """The recorder of a service.

        FINTUNE_STORE is the store's URL; without it there is no store. FINTUNE_KEEP_PREDICTIONS=1 consents to
        keeping texts and answers in it. The reference is the adapter's profile, if it has one; `model` is the
        adapter's name among several.

        Raises:
            ConfigError: FINTUNE_KEEP_PREDICTIONS is not 0 or 1, or is 1 without a store.
            DataError: the store cannot be opened and is not just unavailable, or the profile cannot be read.
        """
        url, consent = os.environ.get("FINTUNE_STORE"), os.environ.get("FINTUNE_KEEP_PREDICTIONS") or "0"
        if consent not in ("0", "1"):
            raise ConfigError(f"FINTUNE_KEEP_PREDICTIONS must be 0 or 1, got {consent!r}")
        if consent == "1" and not url:
            raise ConfigError("FINTUNE_KEEP_PREDICTIONS=1 needs FINTUNE_STORE, the URL of the store")
        store = Store.open(url, keep=consent == "1", patience=PATIENCE) if url else None
        profiled = adapter is not None and (Path(adapter) / PROFILE).is_file()
        reference = Profile.load(adapter) if adapter and profiled else None
        return cls(reference, store, model=model, metrics=metrics)

    def record(
        self, task: str, text: str, prediction: Prediction, *, question: str | None = None, model: str = ""
    ) -> str | None:
        """Record an answer; return the id under which it will be stored, or None if it will not be.

        The window holds only numbers and hashed words. Only a store with consent holds the text; the writer's
        own thread writes it, so nobody waits.
        """
        own = self.model is None or model in ("", self.model)
        if own and self.reference is not None and task in self.reference.tasks:
            seen = Observation.of(text, question, prediction.value, prediction.probabilities)
            self.window.add(task, seen)
        if self.writer is None:
            return None
        row = prediction_row(task, text, prediction, question=question, model=model)
        return str(row["id"]) if self.writer.put(row) else None

    def close(self) -> None:
        """Write what waits, in limited time, and close the store."""
        if self.writer:
            self.writer.close()
        if self.store:
            self.store.close()

    def exposition(self) -> bytes:
        """The response of /metrics; drift and live accuracy are at most REFRESH_SECONDS old.

        If the store does not answer in time, the live accuracy stays as it was.
        """
        with self._lock:
            if time.monotonic() - self._refreshed > REFRESH_SECONDS or not self._refreshed:
                self._refreshed = time.monotonic()
                if self.reference:
                    self.metrics.show_drift(compare(self.reference, self.window.tasks()))
                if self.store is not None:
                    self._judge()
        if self.writer:
            self.metrics.show_writer(self.writer.state())
        return self.metrics.render()

    def _judge(self) -> None:
        """Update the live accuracy in a thread, waiting for it only a limited time."""
        if self._judging is None or not self._judging.is_alive():
            self._judging = threading.Thread(target=self._read_scores, name="fintune-judge", daemon=True)
            self._judging.start()
            self._judging.join(PATIENCE)
        else:  # it has been running since the last refresh
            self._not_judged(SilentError(f"no answer within {REFRESH_SECONDS:g} s"))

    def _read_scores(self) -> None:
        assert self.store is not None
        try:
            self.metrics.show_accuracy(self.store.live_scores(self.model))
        except Exception as error:  # a failure here must not cost the other metrics
            self._not_judged(error)
        else:
            self._unjudged = False

    def _not_judged(self, error: Exception) -> None:
        self.metrics.store_failures.labels("judge").inc()
        if not self._unjudged:
            log.error("FINTUNE_STORE fails, so the live accuracy is not updated: %s", reason(error))
        self._unjudged = True
