"""Uncertainty of a task's metrics: percentile bootstrap intervals (Efron, 1979) and paired tests.

Every metric here is a function of sums over examples, and a resample is a vector of counts. One matrix
product therefore computes all resamples of all metrics: (resamples, clusters) @ (clusters, sums). Dependent
examples are drawn together, by cluster (Field and Welsh, 2007). A metric that is not a function of such sums
(ECE, AURC) has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 1000
PERMUTATIONS = 5000
_COUNTS_AT_A_TIME = 4_000_000
"""32 MB of float64."""

Metric = tuple[Any, Callable[[Any], Any]]
"""The values to sum, (examples, k), and the metric of the sums: (resamples, k) -> (resamples,)."""


def cluster_of(numeric: bool, identity: str, group: str, time: str) -> str:
    """The key that dependent examples share: the date (for numbers), else the group, else the id."""
    if numeric and time:
        return f"date {time[:10]}"
    return f"group {group}" if group else f"example {identity}"  # a group and an id may be equal


@dataclass(frozen=True)
class Sums:
    """One system's metrics, with values summed by cluster: (clusters, columns)."""

    table: Any
    metrics: dict[str, tuple[slice, Callable[[Any], Any]]]

    @classmethod
    def of(cls, metrics: Mapping[str, Metric], places: Any) -> Sums:
        """Args: places: the index of each example's cluster."""
        import numpy as np

        wide = np.concatenate([values for values, _ in metrics.values()], axis=1)
        table = np.zeros((int(max(places)) + 1, wide.shape[1]))
        np.add.at(table, places, wide)
        slices, column = {}, 0
        for name, (values, metric_of) in metrics.items():
            slices[name] = (slice(column, column + values.shape[1]), metric_of)
            column += values.shape[1]
        return cls(table, slices)

    def values(self, sums: Any) -> dict[str, Any]:
        """Each metric's value for each row of sums: (resamples, columns) -> (resamples,)."""
        return {name: metric_of(sums[:, columns]) for name, (columns, metric_of) in self.metrics.items()}


def cluster_places(clusters: Sequence[str]) -> list[int]:
    """The index of each example's cluster, in order of first appearance."""
    index: dict[str, int] = {}
    return [index.setdefault(cluster, len(index)) for cluster in clusters]


def _counts(clusters: int, resamples: int, seed: int) -> Iterator[Any]:
    """How often each resample draws each cluster, a few resamples at a time: (some, clusters)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _COUNTS_AT_A_TIME // clusters))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(0, clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float)


def percentile_interval(values: Any, confidence: float = 0.95) -> tuple[float, float] | None:
    """The central percentiles of the finite values; None if there are none."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not known.size:
        return None
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the share `hits` / `n` (Wilson, 1927), by SciPy; it is sound for few examples too."""
    from scipy.stats import binomtest

    bounds = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(bounds.low), float(bounds.high)


def bootstrap_intervals(
    metrics: Mapping[str, Metric],
    clusters: Sequence[str],
    *,
    shares: Collection[str] = (),
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The percentile interval of each metric when test examples are resampled.

    Examples of one cluster (see `cluster_of`) are drawn together. The interval covers the choice of test
    examples only, not that of training data or training seed. Resamples without a defined metric (R² of
    constant targets) are left out; a metric that no resample defines has no interval. If all examples form
    one cluster, no metric has an interval.

    Args:
        shares: metrics from 0 to 1. If one is 0 or 1 on all examples, every resample equals it, and its
            interval is Wilson's instead, with as many examples as there are clusters.
    """
    import numpy as np

    if not metrics or len(set(clusters)) < 2:
        return {}
    sums = Sums.of(metrics, cluster_places(clusters))
    drawn = np.concatenate([c @ sums.table for c in _counts(len(sums.table), resamples, seed)])
    intervals = {name: percentile_interval(v, confidence) for name, v in sums.values(drawn).items()}
    for name in shares:
        if (bounds := intervals.get(name)) in ((0.0, 0.0), (1.0, 1.0)):
            n = len(sums.table)
            intervals[name] = wilson_interval(round(bounds[0]) * n, n, confidence)
    return {name: bounds for name, bounds in intervals.items() if bounds is not None}


@dataclass(frozen=True)
class Difference:
    """B minus A in one metric, on the same examples."""

    difference: float
    interval: tuple[float, float] | None
    p_value: float | None


def paired_differences(
    a: Mapping[str, Metric],
    b: Mapping[str, Metric],
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Difference]:
    """B minus A for every metric of both, with a 95 % paired bootstrap interval and a permutation p-value.

    The bootstrap draws the same clusters for both systems. The test swaps the two systems' answers at
    random, cluster by cluster, and counts differences at least as large (in either direction):
    p = (1 + that number) / (1 + permutations) (Noreen, 1989; Phipson and Smyth, 2010). A single cluster
    has neither interval nor p-value.
    """
    import numpy as np

    shared = [name for name in a if name in b]
    if not shared:
        return {}
    places = cluster_places(clusters)
    one, two = (Sums.of({name: side[name] for name in shared}, places) for side in (a, b))
    total_a, total_b = one.table.sum(axis=0), two.table.sum(axis=0)
    value_a, value_b = one.values(total_a[None]), two.values(total_b[None])

    drawn: dict[str, list[Any]] = {name: [] for name in shared}
    for counts in _counts(len(one.table), resamples, seed):
        of_a, of_b = one.values(counts @ one.table), two.values(counts @ two.table)
        for name in shared:
            drawn[name].append(of_b[name] - of_a[name])

    rng = np.random.default_rng(seed)
    gap = two.table - one.table
    extreme = dict.fromkeys(shared, 0)
    chunk = max(1, min(permutations, _COUNTS_AT_A_TIME // len(gap)))
    for start in range(0, permutations, chunk):
        swap = rng.integers(0, 2, size=(min(chunk, permutations - start), len(gap))).astype(float)
        moved = swap @ gap
        of_a, of_b = one.values(total_a + moved), two.values(total_b - moved)
        for name in shared:
            seen = abs(float(value_b[name][0] - value_a[name][0])) * (1 - 1e-9)
            extreme[name] += int(np.sum(~(np.abs(of_b[name] - of_a[name]) < seen)))

    found = {}
    for name in shared:
        x, y = float(value_a[name][0]), float(value_b[name][0])
        known = np.isfinite(y - x) and len(gap) > 1
        p = (1 + extreme[name]) / (1 + permutations) if known else None
        interval = percentile_interval(np.concatenate(drawn[name])) if known else None
        found[name] = Difference(y - x, interval, p)
    return found


def mcnemar(correct_a: Sequence[float], correct_b: Sequence[float]) -> float:
    """The exact two-sided p-value of McNemar's test (1947): do the examples that exactly one system gets
    right split evenly between the two? 1 if there are none. For independent examples.
    """
    from scipy.stats import binomtest

    only_a = sum(x > y for x, y in zip(correct_a, correct_b, strict=True))
    only_b = sum(x < y for x, y in zip(correct_a, correct_b, strict=True))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
