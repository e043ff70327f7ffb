"""Writes answers to the store: a bounded queue, and its own thread.

Nobody who asked for an answer waits for the database. While it is unavailable, answers wait here; they are
written when it is back. Answers that no longer fit, or that it refuses, are counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from itertools import islice
from typing import Any

from fintune.monitoring.database import is_outage, reason
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.store import PredictionRow, Store

log = logging.getLogger("fintune.monitoring")
MOST_ROWS = 10_000
MOST_CHARACTERS = 64_000_000
"""The most characters of all waiting texts."""
BATCH = 500
"""Rows per transaction."""
SILENT_SECONDS = 5.0
"""Seconds after which a write counts as an outage."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two tries while the store is unavailable."""
CLOSE_SECONDS = 5.0


class Writer:
    """The queue before a store, and its thread, which starts with the first row."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self.store, self.metrics = store, metrics
        self.lost = 0
        """Answers that were not stored and will not be."""
        self._rows: deque[PredictionRow] = deque()
        self._characters = self._put = self._done = 0
        self._changed = threading.Condition()
        self._ended = self._down = self._full = False
        self._began: float | None = None
        self._pause = FIRST_PAUSE
        self._thread: threading.Thread | None = None

    def put(self, row: PredictionRow) -> bool:
        """Queue a row for writing; False if there is no room. Never waits."""
        with self._changed:
            self._notice_silence()
            full = len(self._rows) >= MOST_ROWS or self._characters > MOST_CHARACTERS
            if self._ended or full:
                self._lose(1, "the queue is full" if full else "the service has ended")
                return False
            self._rows.append(row)
            self._characters += len(row["text"])
            self._put += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fintune-store", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, seconds: float) -> bool:
        """Whether all rows queued so far are settled in time; it does not wait while the store is down."""
        with self._changed:
            wanted = self._put
            self._changed.wait_for(lambda: self._done >= wanted or self._down, seconds)
            return self._done >= wanted

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Write what waits, in limited time; count and log the rest."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            thread = self._thread
        if thread:
            thread.join(seconds)
        with self._changed:
            if self._rows:
                self._lose(len(self._rows), "the service ends while the store is not available")
                self._rows.clear()

    def state(self) -> dict[str, Any]:
        """`state` (ok or down), the number of `waiting` answers, and of `lost` ones."""
        with self._changed:
            self._notice_silence()
            state = "down" if self._down else "ok"
            return {"state": state, "waiting": len(self._rows), "lost": self.lost}

    # The thread; call the methods below with the lock, except `_run` and `_write` ------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rows or self._ended)
                if self._down:
                    self._changed.wait_for(lambda: self._ended, self._pause)
                batch = list(islice(self._rows, BATCH))
                if not batch:
                    return
            if not self._write(batch) and self._ended:
                return

    def _write(self, batch: list[PredictionRow]) -> bool:
        """Write rows together or, if one is refused, one by one; False if the store is unavailable."""
        self._began = time.monotonic()
        try:
            self.store.add_predictions(batch)
        except Exception as error:
            if is_outage(error):
                with self._changed:
                    self._went(error)
                return False
            if len(batch) > 1:
                return all(self._write([row]) for row in batch)
            with self._changed:
                self._lose(1, reason(error))
        finally:
            self._began = None
        with self._changed:
            for _ in range(min(len(batch), len(self._rows))):
                self._characters -= len(self._rows.popleft()["text"])
            self._done += len(batch)
            if self._down:
                log.warning("FINTUNE_STORE works again")
            self._down = self._full = False
            self._pause = FIRST_PAUSE
            self._changed.notify_all()
        return True

    def _notice_silence(self) -> None:
        began = self._began
        if not self._down and began is not None and time.monotonic() - began > SILENT_SECONDS:
            self._went(None)

    def _went(self, error: Exception | None) -> None:
        """Treat the store as unavailable; log it once per outage."""
        if not self._down:
            why = reason(error) if error else f"no answer within {SILENT_SECONDS:g} s"
            log.error("FINTUNE_STORE fails, so answers wait in memory and feedback is refused: %s", why)
        elif error:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._down = True
        self._changed.notify_all()

    def _lose(self, count: int, why: str) -> None:
        if not self._full:
            log.error(
                "FINTUNE_STORE: %d answers are not stored: %s; further ones are only counted", count, why
            )
        self._full = True
        self.lost += count
        self.metrics.store_failures.labels("keep").inc(count)
