"""Compares live traffic with the reference profile: effect sizes, two-sample tests, a verdict.

- PSI = Σ (p − q) ln(p / q) over labels, or over the reference's deciles of a number. By convention 0.1 asks
  for a look and 0.2 means a shift. Without a shift its mean is about (bins − 1)(1/n + 1/m) (Yurdakul, 2018),
  so small windows are not judged.
- Jensen-Shannon divergence in bits (Lin, 1991): 0 for equal distributions, 1 for disjoint ones.
- Two-sample tests: chi-square of homogeneity for counts, Kolmogorov-Smirnov for numbers.

With many answers any difference is significant, and with few a large one may be chance, so a verdict needs
both. The vocabulary has only an effect size (see `_words`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fintune.monitoring.profile import Observation, Profile, TaskProfile

MIN_ANSWERS = 100
"""Fewer answers are not judged."""
WINDOW = 1000
"""Number of newest answers per task that are compared."""
WATCH, DRIFT = 0.1, 0.2
"""PSI limits for labels and numbers."""
WATCH_WORDS, DRIFT_WORDS = 0.015, 0.03
"""Limits of the vocabulary's Jensen-Shannon divergence in bits, after subtracting chance. Samples of one
public dataset differ by at most 0.010, samples of two by at least 0.038 (docs/monitoring.md)."""
P_VALUE = 0.01
BINS = 10
LEVELS = ("too few", "stable", "watch", "drift")
"""From the least to the most alarming."""


class Window:
    """Each task's newest answers in one process. Thread-safe."""

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._tasks: dict[str, deque[Observation]] = {}
        self._lock = threading.Lock()

    def add(self, task: str, observation: Observation) -> None:
        """Keep one answer; beyond the window's size the oldest is dropped."""
        with self._lock:
            self._tasks.setdefault(task, deque(maxlen=self._size)).append(observation)

    def tasks(self) -> dict[str, list[Observation]]:
        """A copy of the kept answers, by task."""
        with self._lock:
            return {task: list(kept) for task, kept in self._tasks.items()}


def population_stability(expected: ArrayLike, actual: ArrayLike) -> float:
    """PSI of two sets of counts over the same bins; an empty bin counts as half an item.

    Args:
        expected: the reference's counts, (bins,).
        actual: the window's counts, (bins,).
    """
    p, q = _shares(expected), _shares(actual)
    return float(((q - p) * np.log(q / p)).sum())


def _shares(counts: ArrayLike) -> np.ndarray:
    filled = np.maximum(np.asarray(counts, dtype=float), 0.5)
    return filled / filled.sum()


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> float:
    """The Jensen-Shannon divergence of two sets of counts over the same bins, in bits: from 0 to 1."""
    from scipy.spatial.distance import jensenshannon

    p, q = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not p.sum() or not q.sum():
        return 0.0
    return float(np.nan_to_num(jensenshannon(p, q, base=2)) ** 2)


def compare(reference: Profile, observed: Mapping[str, Iterable[Observation]]) -> dict[str, Any]:
    """The report of live observations against the reference, task by task, ready for JSON.

    A task that the reference lacks is left out. A task's `status` is the worst of its signals', the report's
    the worst of its tasks'.
    """
    tasks = {}
    for name, expected in reference.tasks.items():
        actual = TaskProfile.of(observed.get(name, ()), list(expected.labels))
        tasks[name] = _compare_task(expected, actual)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "reference": reference.source,
        "thresholds": {
            "psi": [WATCH, DRIFT],
            "words_js": [WATCH_WORDS, DRIFT_WORDS],
            "p_value": P_VALUE,
            "min_answers": MIN_ANSWERS,
        },
        "status": _worst(entry["status"] for entry in tasks.values()),
        "tasks": tasks,
    }


def _worst(statuses: Iterable[str]) -> str:
    return max(statuses, key=LEVELS.index, default=LEVELS[0])


def _compare_task(expected: TaskProfile, actual: TaskProfile) -> dict[str, Any]:
    entry: dict[str, Any] = {"n": actual.n, "reference_n": expected.n, "status": "too few", "signals": {}}
    if min(actual.n, expected.n) < MIN_ANSWERS:
        return entry
    signals = entry["signals"]
    if expected.labels:
        names = sorted(set(expected.labels) | set(actual.labels))
        signals["labels"] = _counts(
            [expected.labels.get(name, 0) for name in names], [actual.labels.get(name, 0) for name in names]
        )
        signals["labels"]["shares"] = {
            name: [expected.labels.get(name, 0) / expected.n, actual.labels.get(name, 0) / actual.n]
            for name in names
        }
    for name, values in expected.numbers.items():
        if values and actual.numbers.get(name):
            signals[name] = _numbers(values, actual.numbers[name])
    signals["words"] = _words(expected, actual)
    entry["status"] = _worst(found["status"] for found in signals.values())
    return entry


def _verdict(size: float, p_value: float, watch: float, drift: float) -> str:
    if p_value >= P_VALUE or size < watch:
        return "stable"
    return "drift" if size >= drift else "watch"


def _counts(expected: list[int], actual: list[int]) -> dict[str, Any]:
    """Two sets of label counts."""
    from scipy.stats import chi2_contingency

    table = np.array([expected, actual])
    table = table[:, table.sum(axis=0) > 0]
    statistic, p_value = (0.0, 1.0) if table.shape[1] < 2 else chi2_contingency(table)[:2]
    psi = population_stability(expected, actual)
    return {
        "psi": psi,
        "js": jensen_shannon(expected, actual),
        "test": {"name": "chi-square", "statistic": float(statistic), "p_value": float(p_value)},
        "status": _verdict(psi, float(p_value), WATCH, DRIFT),
    }


def _numbers(expected: list[float], actual: list[float]) -> dict[str, Any]:
    """Two samples of a number; PSI and divergence over the reference's deciles."""
    from scipy.stats import ks_2samp

    edges = _edges(expected)
    binned = np.array(
        [
            np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
            for values in (expected, actual)
        ]
    )
    binned = binned[:, binned.any(axis=0)]  # drop bins that are empty in both
    found = ks_2samp(expected, actual, method="asymp")
    psi = population_stability(*binned)
    return {
        "psi": psi,
        "js": jensen_shannon(*binned),
        "test": {
            "name": "Kolmogorov-Smirnov",
            "statistic": float(found.statistic),
            "p_value": float(found.pvalue),
        },
        "medians": [float(np.median(expected)), float(np.median(actual))],
        "status": _verdict(psi, float(found.pvalue), WATCH, DRIFT),
    }


def _edges(expected: list[float]) -> np.ndarray:
    """The upper edges of all bins but the last: deciles; a value that fills one or more has its own bin.

    If a confidence is nearly always 1.0, all deciles equal 1.0, and lower values would share its bin.
    """
    edges = np.unique(np.quantile(expected, np.linspace(0, 1, BINS + 1)[1:-1]))
    shares = np.equal.outer(edges, expected).mean(axis=1)
    return np.union1d(edges, np.nextafter(edges[shares > 1 / BINS], -np.inf))


def _words(expected: TaskProfile, actual: TaskProfile) -> dict[str, Any]:
    """Compare two vocabularies: the number of texts with a word in each hashed bucket.

    Two samples of one source differ by about (buckets − 1)(1/a + 1/b) / (8 ln 2) bits, where `a` and `b` are
    the sums of their counts; this is subtracted. There is no test: words of a text are dependent, so a test
    that counts each as an independent draw would call every difference significant.
    """
    first, second = np.array(expected.words, dtype=float), np.array(actual.words, dtype=float)
    js = 0.0
    if first.sum() and second.sum():
        used = int(((first + second) > 0).sum())
        chance = (used - 1) * (1 / first.sum() + 1 / second.sum()) / (8 * np.log(2))
        js = max(0.0, jensen_shannon(first, second) - float(chance))
    return {
        "psi": None,
        "js": js,
        "test": None,
        "status": _verdict(js, 0.0, WATCH_WORDS, DRIFT_WORDS),
    }
