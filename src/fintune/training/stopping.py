"""Ending a run early at no loss: by Ctrl-C or a signal, and by the clock for what ends it without one."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
import transformers
from accelerate.utils import reduce

SHARE = 50
"""One comes by time after so many times what the last one took, at the earliest."""


class Stopping(transformers.TrainerCallback):
    """Saves when the last checkpoint is `minutes` old; in its `with` block a signal ends the run well.

    The first Ctrl-C or SIGTERM lets the step end and saves; another one ends at once. What one of several
    processes is told, all do.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.signal: int = 0
        """The one that came."""
        self.stepping = False
        self.ended = False
        """Whether it ended the run between two steps, with a checkpoint."""
        self._before: dict[int, Any] = {}
        self._saved = self._begun = time.monotonic()
        self._received = self._took = 0.0

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now, last, self.signal = time.monotonic(), self._received, number
        if not self.stepping or (last and now - last > 1):
            raise KeyboardInterrupt
        self._received = now
        if last:  # a launcher passes on what the terminal has sent already
            return
        print("\nStopping after this step, with a checkpoint. Once more to stop at once.", file=sys.stderr)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stepping = True
        self._saved = time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stepping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        age = time.monotonic() - self._saved
        due = self.minutes is not None and age > max(60 * self.minutes, SHARE * self._took)
        told = torch.tensor([float(due), float(self.signal > 0)], device=args.device)
        if args.world_size > 1:
            told = reduce(told, "sum")
        due, self.ended = (told > 0).tolist()
        if due or self.ended:
            control.should_save = True
        if self.ended:
            control.should_training_stop = True
        self._begun = time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()
        self._took = self._saved - self._begun
