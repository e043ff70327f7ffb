"""How sure a figure is: percentile bootstrap intervals (Efron, 1979) of a task's metrics.

Every metric here is a function of sums over examples, and a resample is a vector of counts: so all
resamples of all metrics are one matrix product, (resamples, examples) @ (examples, sums).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fintune.evaluation.metrics import score_examples

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

RESAMPLES = 1000
_COUNTS_AT_A_TIME = 4_000_000
"""32 MB of float64."""

Metric = tuple[Any, Callable[[Any], Any]]
"""The values to sum, (examples, k), and the metric of such sums: (resamples, k) -> (resamples,)."""


def _f1_metrics(cells: Any, classes: int) -> dict[str, Metric]:
    """Macro and weighted F1 from confusion matrices of `classes` labels and one place for any other."""
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

    return {"macro_f1": (table, macro), "weighted_f1": (table, weighted)}


def _r2_metric(targets: Any, squared_errors: Any) -> Metric:
    """R² from sums of (y, y², (y - ŷ)²); nan where the resampled targets are constant."""
    import numpy as np

    y = targets - targets.mean()  # R² does not depend on where 0 lies, but rounding does
    n = len(y)

    def r2(sums: Any) -> Any:
        y, y2, error2 = sums.T
        spread = y2 - y * y / n
        return 1 - error2 / np.where(spread > 1e-9 * y2, spread, np.nan)  # rounding leaves a trace of 0

    return np.stack([y, y * y, squared_errors], axis=1), r2


def _metrics(
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    extra: Mapping[str, Sequence[float]],
) -> dict[str, Metric]:
    import numpy as np

    n = len(records)
    by_example = {**score_examples(task, records, predictions), **extra}
    scores = {name: np.array(values) for name, values in by_example.items()}
    names = {"correct": "accuracy", "squared_error": "mse", "absolute_error": "mae"}
    metrics: dict[str, Metric] = {
        names.get(name, name): (values[:, None], lambda sums: sums[:, 0] / n)
        for name, values in scores.items()
    }
    if task.type == "classification":
        place = {label: i for i, label in enumerate(task.candidates())}
        k = len(place)
        cells = [
            place.get(str(r.target), k) * (k + 1) + place.get(str(p.value), k)
            for r, p in zip(records, predictions, strict=True)
        ]
        metrics |= _f1_metrics(cells, k)
    if task.type == "regression":
        targets = np.array([float(r.target) for r in records])  # type: ignore[arg-type]
        metrics["r2"] = _r2_metric(targets, scores["squared_error"])
    return metrics


def bootstrap_intervals(
    task: Task,
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    *,
    extra: Mapping[str, Sequence[float]] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The percentile interval of each metric known here when the test examples are drawn anew.

    It covers the choice of test examples alone, not that of training data or of the training seed.
    Resamples in which a metric is not defined (R² of constant targets) are left out; a metric that is
    defined in none of them has no interval.

    Args:
        extra: further metrics that are means over the examples, by their value on each.
    """
    import numpy as np

    metrics = _metrics(task, records, predictions, extra or {})
    if not metrics:
        return {}
    n = len(records)
    table = np.concatenate([values for values, _ in metrics.values()], axis=1)
    rng = np.random.default_rng(seed)
    chunk = max(1, min(resamples, _COUNTS_AT_A_TIME // n))
    sums = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        draws = rng.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n).astype(float)
        sums.append(counts @ table)
    drawn = np.concatenate(sums)

    intervals = {}
    tail = 100 * (1 - confidence) / 2
    column = 0
    for name, (columns, metric_of) in metrics.items():
        values = metric_of(drawn[:, column : column + columns.shape[1]])
        column += columns.shape[1]
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, [tail, 100 - tail])
            intervals[name] = (float(low), float(high))
    return intervals
