"""How sure a figure is: percentile bootstrap intervals (Efron, 1979) and paired tests of a task's metrics.

Every metric here is a function of sums over examples, and a resample is a vector of counts: so all
resamples of all metrics are one matrix product, (resamples, clusters) @ (clusters, sums). Examples that are
not independent are drawn together, by cluster (Field and Welsh, 2007). A metric that is no function of such
sums (ECE, AURC) has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fintune.evaluation.scores import METRIC_OF, example_scores

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

RESAMPLES = 1000
PERMUTATIONS = 5000
_COUNTS_AT_A_TIME = 4_000_000
"""32 MB of float64."""

Metric = tuple[Any, Callable[[Any], Any]]
"""The values to sum, (examples, k), and the metric of such sums: (resamples, k) -> (resamples,)."""


def _ratio(sums: Any) -> Any:
    """Σ of the first column / Σ of the second; nan where the second is 0."""
    import numpy as np

    return sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)


def _mean_metric(values: Any) -> Metric:
    """The mean of what is not nan."""
    import numpy as np

    known = np.isfinite(values)
    return np.stack([np.where(known, values, 0.0), known.astype(float)], axis=1), _ratio


def _label_metrics(cells: Any, classes: int) -> dict[str, Metric]:
    """Macro and weighted F1 and MCC, from confusion matrices of `classes` labels and one more for others."""
    import numpy as np

    side = classes + 1
    table = np.zeros((len(cells), side * side))
    table[np.arange(len(cells)), cells] = 1

    def per_class(sums: Any) -> tuple[Any, Any]:
        matrices = sums.reshape(-1, side, side)
        hits = np.diagonal(matrices, axis1=1, axis2=2)
        total = matrices.sum(axis=1) + matrices.sum(axis=2)
        f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
        return f1[:, :classes], matrices.sum(axis=2)[:, :classes]

    def macro(sums: Any) -> Any:
        return per_class(sums)[0].mean(axis=1)

    def weighted(sums: Any) -> Any:
        f1, support = per_class(sums)
        return (f1 * support).sum(axis=1) / support.sum(axis=1)

    def mcc(sums: Any) -> Any:
        matrices = sums.reshape(-1, side, side)
        hits = np.trace(matrices, axis1=1, axis2=2)
        true, got = matrices.sum(axis=2), matrices.sum(axis=1)
        n = true.sum(axis=1)
        shared = hits * n - (true * got).sum(axis=1)
        spread = (n * n - (true * true).sum(axis=1)) * (n * n - (got * got).sum(axis=1))
        return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)

    return {"macro_f1": (table, macro), "weighted_f1": (table, weighted), "mcc": (table, mcc)}


def _r2_metric(targets: Any, squared_errors: Any) -> Metric:
    """R² from sums of (1, y, y², (y - ŷ)²); nan where the resampled targets are constant."""
    import numpy as np

    y = targets - targets.mean()  # R² does not depend on where 0 lies, but rounding does

    def r2(sums: Any) -> Any:
        n, y, y2, error2 = sums.T
        spread = y2 - y * y / n
        return 1 - error2 / np.where(spread > 1e-9 * y2, spread, np.nan)  # rounding leaves a trace of 0

    return np.stack([np.ones_like(y), y, y * y, squared_errors], axis=1), r2


def _correlation_metric(x: Any, y: Any) -> Metric:
    """Pearson's correlation from sums; with ranks, Spearman's, the ranks kept as in the whole sample."""
    import numpy as np

    x, y = x - x.mean(), y - y.mean()

    def correlation(sums: Any) -> Any:
        n, x, y, xx, yy, xy = sums.T
        spread = (xx - x * x / n) * (yy - y * y / n)
        return (xy - x * y / n) / np.sqrt(np.where(spread > 1e-9 * xx * yy, spread, np.nan))

    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1), correlation


def metrics_by_sums(
    kind: str,
    labels: Sequence[str],
    targets: Sequence[Any],
    answers: Sequence[Any],
    scores: Mapping[str, Sequence[float]],
) -> dict[str, Metric]:
    """Every metric of a task that is a function of sums over the examples, by name.

    Args:
        kind: the task's type.
        labels: its labels, for a classification.
        scores: measure → its value on each example, nan where it has none.
    """
    import numpy as np

    columns = {name: np.array(values, float) for name, values in scores.items()}
    metrics = {
        METRIC_OF.get(name, name): _mean_metric(values)
        for name, values in columns.items()
        if not name.startswith("numbers")
    }
    if "numbers" in columns:
        both = np.stack([columns["numbers_supported"], columns["numbers"]], axis=1)
        metrics["number_faithfulness"] = (both, _ratio)
    if kind == "classification":
        place = {label: i for i, label in enumerate(labels)}
        k = len(place)
        cells = [
            place.get(str(t), k) * (k + 1) + place.get(str(a), k)
            for t, a in zip(targets, answers, strict=True)
        ]
        metrics |= _label_metrics(cells, k)
    if kind == "regression" and columns:
        from scipy.stats import rankdata

        y, forecast = np.array(targets, float), np.array(answers, float)
        metrics["r2"] = _r2_metric(y, columns["squared_error"])
        metrics["spearman"] = _correlation_metric(rankdata(y), rankdata(forecast))
    return metrics


def cluster_of(kind: str, identity: str, group: str, time: str) -> str:
    """What an example shares with those it is not independent of: its date (numbers), else group, else id."""
    if kind == "regression" and time:
        return f"date {time[:10]}"
    return f"group {group}" if group else f"example {identity}"  # a group may be called as an example is


@dataclass(frozen=True)
class Sums:
    """Metrics of one system, with the values of each cluster summed: (clusters, columns)."""

    table: Any
    metrics: dict[str, tuple[slice, Callable[[Any], Any]]]

    @classmethod
    def of(cls, metrics: Mapping[str, Metric], places: Any) -> Sums:
        """Args: places: the cluster of each example, as an index."""
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
        """Metric → its value for each row of sums: (resamples, columns) -> (resamples,)."""
        return {name: metric_of(sums[:, columns]) for name, (columns, metric_of) in self.metrics.items()}


def cluster_places(clusters: Sequence[str]) -> list[int]:
    """The index of each example's cluster, in order of first appearance."""
    index: dict[str, int] = {}
    return [index.setdefault(cluster, len(index)) for cluster in clusters]


def _counts(clusters: int, resamples: int, seed: int) -> Iterator[Any]:
    """How often each cluster is drawn in each resample, some resamples at a time: (some, clusters)."""
    import numpy as np

    rng = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _COUNTS_AT_A_TIME // clusters))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(0, clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float)


def percentile_interval(values: Any, confidence: float = 0.95) -> tuple[float, float] | None:
    """The central percentiles of what is finite; None where nothing is."""
    import numpy as np

    known = values[np.isfinite(values)]
    if not known.size:
        return None
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_intervals(
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    scores: Mapping[str, Sequence[float]] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The percentile interval of each metric known here when the test examples are drawn anew.

    Examples of one group, or of one date for numbers with a time, are drawn together (see `cluster_of`).
    It covers the choice of test examples alone, not that of training data or of the training seed.
    Resamples in which a metric is not defined (R² of constant targets) are left out; a metric that is
    defined in none of them has no interval. Nor has any where all examples are of one cluster.

    Args:
        scores: measures by example, where they are known already or there are more than `example_scores`.
    """
    import numpy as np

    scores = example_scores(task, records, predictions) if scores is None else scores
    labels = task.candidates() if task.type == "classification" else []
    targets, answers = [r.target for r in records], [p.value for p in predictions]
    metrics = metrics_by_sums(task.type, labels, targets, answers, scores)
    clusters = [cluster_of(task.type, str(i), r.group, r.time) for i, r in enumerate(records)]
    if not metrics or len(set(clusters)) < 2:
        return {}
    sums = Sums.of(metrics, cluster_places(clusters))
    drawn = np.concatenate([c @ sums.table for c in _counts(len(sums.table), resamples, seed)])
    intervals = {name: percentile_interval(v, confidence) for name, v in sums.values(drawn).items()}
    return {name: bounds for name, bounds in intervals.items() if bounds is not None}


@dataclass(frozen=True)
class Difference:
    """B minus A in one metric, on the same examples."""

    a: float
    b: float
    interval: tuple[float, float] | None
    p_value: float | None

    @property
    def difference(self) -> float:
        return self.b - self.a


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

    The bootstrap draws the same clusters for both systems. The test asks how often a difference at least as
    large (either way) arises when the two systems' answers are swapped at random, cluster by cluster:
    p = (1 + that number) / (1 + permutations) (Noreen, 1989; Phipson and Smyth, 2010). One cluster alone
    says nothing of chance: it has neither interval nor p-value.
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
        found[name] = Difference(x, y, interval, p)
    return found


def mcnemar(correct_a: Sequence[float], correct_b: Sequence[float]) -> float:
    """The exact two-sided p-value of McNemar's test (1947): of the examples on which exactly one system is
    right, are half each one's? 1 where there are none. For independent examples.
    """
    from scipy.stats import binomtest

    only_a = sum(x > y for x, y in zip(correct_a, correct_b, strict=True))
    only_b = sum(x < y for x, y in zip(correct_a, correct_b, strict=True))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
