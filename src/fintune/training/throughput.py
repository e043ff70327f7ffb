"""Measures how fast a run computes: examples, tokens, and the share of the machine's matrix peak."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from fintune.errors import DataError
from fintune.files import read_json, write_json
from fintune.models.base import cache_dir
from fintune.provenance import machine
from fintune.training.steps import Step

SUMS = ("examples", "tokens", "plain_tokens", "targets", "slots")
"""What is counted per step; the fields of `Step`."""
SPEEDS = (
    "examples_per_second",
    "tokens_per_second",
    "plain_tokens_per_second",
    "sharing",
    "padding",
    "utilisation",
)
"""The keys of what `speeds` returns."""


class FlopCount:
    """Floating-point operations that training needs: per computed token 4 for each frozen weight of a layer
    (forward and input gradient) and 6 for each trained one; per target 4 for each weight of the LM head.
    Attention, normalization and recomputation under gradient checkpointing are not counted: the share
    of the peak covers useful products only.
    """

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        outside = {id(p) for part in (head, model.get_input_embeddings()) for p in part.parameters()}
        sizes = [(_numel(p), p.requires_grad) for p in model.parameters() if id(p) not in outside]
        self.per_token = sum(size * (6 if trained else 4) for size, trained in sizes)
        self.per_target = 4 * _numel(head.weight)

    def __call__(self, tokens: float, targets: float) -> float:
        return tokens * self.per_token + targets * self.per_target


def _numel(parameter: Any) -> int:
    """The number of weights in a parameter: 4-bit weights are packed two to a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return int(parameter.numel()) * (2 if packed else 1)


_SMALL = 512
"""Size of a matrix whose product takes milliseconds."""


@functools.cache
def matrix_peak() -> float:
    """The best rate of a large matrix product in fp32 or bfloat16, in FLOP/s.

    It is measured once per machine and cached in `matrix_peak.json` in the user's cache folder, by processor,
    threads, PyTorch's version and dtype. If a small product is already faster than the cached value, the
    machine was busy when that was measured, and it is measured again.
    """
    path = cache_dir() / "matrix_peak.json"
    known: dict[str, float] = {}
    with contextlib.suppress(DataError, OSError, TypeError, ValueError):  # absent or damaged: measure again
        known = dict(read_json(path))
    unit = machine()["gpu"] or machine()["processor"]
    on = f"{unit}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    best, changed = 0.0, False
    for dtype in (torch.float32, torch.bfloat16):
        key = f"{on}, {str(dtype).removeprefix('torch.')}"
        kept = known.get(key)
        # Without hardware for a dtype even a small product is slow, and nobody needs its rate.
        useful = isinstance(kept, float) and kept > best / 8
        if not isinstance(kept, float) or (useful and _rate(_SMALL, dtype) > kept):
            known[key], changed = _measured_peak(dtype, best), True
        best = max(best, known[key])
    if changed:
        with contextlib.suppress(OSError):  # a read-only folder costs a measurement each time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return best


def _measured_peak(dtype: torch.dtype, best: float) -> float:
    """FLOP/s of the fastest of three sizes. Stops early if far below `best`, the best so far: without
    hardware for it, a CPU computes bfloat16 a hundred times slower than fp32."""
    found = 0.0
    for size in (_SMALL, 4096, 8192) if torch.cuda.is_available() else (_SMALL, 1024, 2048):
        rate = _rate(size, dtype)
        found = max(found, rate)
        if rate < max(best, found) / 8:
            break
    return found


def _rate(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two (size, size) matrices."""
    a = torch.randn(size, size, dtype=dtype, device="cuda" if torch.cuda.is_available() else "cpu")
    return 2 * size**3 / fastest(lambda: a @ a)


def fastest(work: Callable[[], object]) -> float:
    """The seconds of the fastest of four calls; on a GPU until it has finished."""
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


class Meter(transformers.TrainerCallback):
    """Counts what the optimizer steps compute and how long they take, excluding validation and saving.

    Args:
        flops: the cost of a token.
        peak: the machine's matrix peak in FLOP/s.
    """

    def __init__(self, flops: FlopCount, peak: float) -> None:
        self.flops = flops
        self.peak = peak
        self.totals: dict[str, float] = dict.fromkeys((*SUMS, "seconds"), 0)
        """Counted in this process since it started; the parts before a resume are not included."""
        self._shown = dict(self.totals)
        self._begun: Any = None
        self._pending: list[tuple[Any, Any]] = []

    def add(self, step: Step) -> None:
        for name in SUMS:
            self.totals[name] += getattr(step, name)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun = self._now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._pending.append((self._begun, self._now()))

    def _now(self) -> Any:
        """The current time; on a GPU an event in its queue, because queued work is not done yet."""
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        """Add the seconds up to the last step; this waits until a GPU has finished it."""
        for begun, ended in self._pending:
            if isinstance(ended, float):
                self.totals["seconds"] += ended - begun
            else:
                ended.synchronize()
                self.totals["seconds"] += begun.elapsed_time(ended) / 1000
        self._pending.clear()

    def window(self) -> dict[str, float]:
        """The counts since the last call."""
        self.settle()
        done = {name: value - self._shown[name] for name, value in self.totals.items()}
        self._shown = dict(self.totals)
        return done


def speeds(sums: dict[str, float], flops: FlopCount, peak: float, processes: int = 1) -> dict[str, float]:
    """The speeds of a run, from sums over its steps (of all processes; `seconds` are those of one).

    `tokens_per_second` counts computed tokens, `plain_tokens_per_second` those that training without shared
    prefixes would compute; `sharing` is their ratio; `padding` the share of attention's positions without a
    token; `utilisation` the share of the matrix peak. All are 0 for a run without steps.
    """
    seconds = sums["seconds"]
    if not seconds:  # resumed from the last step
        return dict.fromkeys(SPEEDS, 0.0)
    return {
        "examples_per_second": sums["examples"] / seconds,
        "tokens_per_second": sums["tokens"] / seconds,
        "plain_tokens_per_second": sums["plain_tokens"] / seconds,
        "sharing": sums["plain_tokens"] / sums["tokens"],
        "padding": 1 - sums["tokens"] / sums["slots"],
        "utilisation": flops(sums["tokens"], sums["targets"]) / seconds / (peak * processes),
    }
