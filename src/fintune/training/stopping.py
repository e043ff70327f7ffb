"""Stops a run without losing work: on Ctrl-C or SIGTERM, and by timed checkpoints in case it is killed."""

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
"""A timed checkpoint waits at least this many times as long as the last one took to write."""


class Stopping(transformers.TrainerCallback):
    """Saves when the last checkpoint is `minutes` old; in its `with` block a signal stops the run cleanly.

    After the first Ctrl-C or SIGTERM the step ends and is saved; the second stops at once. A signal to one
    of several processes stops them all.
    """

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.signal: int = 0
        """The signal that came, if any."""
        self.stepping = False
        self.ended = False
        """Whether the signal stopped the run between two steps, with a checkpoint."""
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
        if last:  # a launcher forwards what the terminal has sent already
            return
        print("\nStopping after this step and saving a checkpoint. Repeat to stop at once.", file=sys.stderr)

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
