"""One object for the service: an answer in, and everything that watches answers knows of it."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from fintune.errors import ConfigError
from fintune.monitoring.database import PATIENCE, SilentError, reason
from fintune.monitoring.drift import WINDOW, Window, compare
from fintune.monitoring.metrics import METRICS, Metrics
from fintune.monitoring.profile import NAME as PROFILE
from fintune.monitoring.profile import Observation, Profile
from fintune.monitoring.store import Store, prediction_row
from fintune.monitoring.writer import Writer
from fintune.tasks import Prediction

log = logging.getLogger("fintune.monitoring")

REFRESH_SECONDS = 30.0
"""How old the drift gauges may be when Prometheus reads them."""


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
        self.writer = Writer(store, metrics) if store is not None and store.keep else None
        """What keeps answers; None where nothing is kept."""
        self._refreshed = 0.0
        self._lock = threading.Lock()
        self._judging: threading.Thread | None = None
        self._unjudged = False

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
            DataError: the store cannot be opened, and is not only away; or the profile cannot be read.
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
        """Take note of an answer; the id under which it will be kept, or None where it is not, or cannot be.

        The window holds numbers and hashed words alone; the text is written only by a store with consent,
        which nobody waits for: the writer has its own thread.
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
        """Write what waits, in limited time, and let the store go."""
        if self.writer:
            self.writer.close()
        if self.store:
            self.store.close()

    def exposition(self) -> bytes:
        """What /metrics answers, with drift and live accuracy not older than REFRESH_SECONDS.

        A store that does not answer in time leaves the live accuracy as it was.
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
        """Bring the live accuracy up to date, in a thread that is waited for so long and no longer."""
        if self._judging is None or not self._judging.is_alive():
            self._judging = threading.Thread(target=self._read_scores, name="fintune-judge", daemon=True)
            self._judging.start()
            self._judging.join(PATIENCE)
        else:  # it has had the time since the last refresh
            self._not_judged(SilentError(f"no answer within {REFRESH_SECONDS:g} s"))

    def _read_scores(self) -> None:
        assert self.store is not None
        try:
            self.metrics.show_accuracy(self.store.live_scores(self.model))
        except Exception as error:  # whatever fails here must not cost the other metrics
            self._not_judged(error)
        else:
            self._unjudged = False

    def _not_judged(self, error: Exception) -> None:
        self.metrics.store_failures.labels("judge").inc()
        if not self._unjudged:
            log.error(
                "FINTUNE_STORE fails, so the live accuracy is not brought up to date: %s", reason(error)
            )
        self._unjudged = True
