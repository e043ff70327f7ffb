"""Decides whether the model is lost: after repeated failures, or when a step never ends.

A single failure costs only its own requests. But a faulted device fails at everything afterwards, and a step
that hangs holds up everyone. Only a new process helps: the server exits, and its supervisor restarts it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

from fintune.errors import FintuneError
from fintune.serving.errors import ApiError

log = logging.getLogger("fintune.serving")


class Health:
    """Watches the model thread's steps from a thread of its own."""

    def __init__(
        self, max_step: float, max_failures: int, probe: Callable[[], None], on_lost: Callable[[], None]
    ) -> None:
        """
        Args:
            max_step: seconds that one step may take.
            max_failures: failures in a row after which `probe` is called.
            probe: computes something small and raises what is wrong. A model that passes is kept: requests
                that make it fail must not end the server.
            on_lost: called once, when the model is lost.
        """
        self.lost = ""
        """Why the model is lost; "" while it is not."""
        self._max_step, self._max_failures = max_step, max_failures
        self._probe, self._on_lost = probe, on_lost
        self._failures = 0
        self._since: float | None = None
        self._end = threading.Event()
        threading.Thread(target=self._watch, name="fintune-watch", daemon=True).start()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step of the model thread, with a time limit."""
        self.beat()
        try:
            yield
        finally:
            self._since = None

    def beat(self) -> None:
        """The step made progress: restart its time limit."""
        self._since = time.monotonic()

    def worked(self) -> None:
        """The model has computed something."""
        self._failures = 0

    def failed(self) -> None:
        """The model has failed; after `max_failures` in a row it is probed."""
        self._failures += 1
        if self._failures < self._max_failures:
            return
        try:
            self._probe()
        except (ApiError, FintuneError):  # such as a missing folder: not the device's fault
            pass
        except BaseException as error:
            self.lose(f"it failed {self._failures} times in a row and in a small test", error)
            return
        self._failures = 0

    def lose(self, why: str, error: BaseException | None = None) -> None:
        """Declare the model lost."""
        if self.lost:
            return
        self.lost = why
        log.critical("the model is lost: %s", why, exc_info=error)
        self.stop()
        self._on_lost()

    def stop(self) -> None:
        """Watch no more."""
        self._end.set()

    def _watch(self) -> None:
        while not self._end.wait(min(1.0, self._max_step / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._max_step:
                self.lose(f"a step has taken more than {self._max_step:g} s")
