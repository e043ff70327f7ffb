"""`Measure`: a metric defined once by its name, its value per example, and how examples are aggregated.

Metrics, bootstrap intervals, paired tests, report rows and comparisons all come from a type's `Measure`s.
Tasks, records and predictions are passed through: nothing here reads them.

Shapes: n examples, k values per example, m sets of examples (one, or the number of resamples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

PerExample = Callable[[Any, Sequence[Any], Sequence[Any]], Any]
"""(task, records, predictions) → (n,) values, nan if undefined, or (n, k) for an `aggregate` of its own."""


@dataclass(frozen=True)
class Measure:
    """One metric.

    `Measure("f1", "F1 (tokens)", each(lambda task, record, prediction: ...))` is a complete definition. A
    metric that is not a mean gives k values per example, and a function from their sums to the metric: R²
    gives 1, y, y² and (y − ŷ)². A metric that is not a function of sums (`whole`), such as a calibration
    error, takes all values and has no interval.
    """

    name: str
    """The key in results files, such as `macro_f1`."""
    title: str
    """Its title in tables."""
    per_example: PerExample
    better: Literal["higher", "lower", "neither"] = "higher"
    aggregate: Literal["mean"] | Callable[[Array], Any] = "mean"
    """`mean` over non-nan values; else (m, k) sums → (m,) values, or if `whole` (n, k) values → one value."""
    columns: tuple[str, ...] = ()
    """Names of the k values in the predictions file. For a mean, () means the measure's name; for another
    `aggregate`, () means that they are not stored, because targets and answers determine them."""
    share: bool = False
    """Ranges from 0 to 1, such as an accuracy or an F1; its interval is never a single point."""
    whole: bool = False
    optional: bool = False
    """Left out if no example has a value."""
    further: bool = False
    """Computed in evaluation only, not in validation during training."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns stored in the predictions file."""
        return self.columns or ((self.name,) if self.aggregate == "mean" else ())

    @property
    def column(self) -> str:
        """The column that ranks answers by this measure: its first one, or its name if none is stored."""
        return (*self.kept, self.name)[0]

    def table(self, task: Any, records: Sequence[Any], predictions: Sequence[Any]) -> Array:
        """The values of each example, (n, k) float64."""
        import numpy as np

        values = np.asarray(self.per_example(task, records, predictions), float)
        return values.reshape(len(records), -1)

    def of(self, table: Array) -> float:
        """The metric over some examples; nan if undefined.

        Args:
            table: (n, k) values, as `table` returns them.
        """
        if self.whole:
            assert callable(self.aggregate)
            return float(self.aggregate(table))
        summands, of_sums = self.summable(table)
        return float(of_sums(summands.sum(axis=0, keepdims=True))[0])

    def summable(self, table: Array) -> tuple[Array, Callable[[Array], Any]]:
        """Values to sum over examples, (n, k), and the function of m such sums, (m, k) → (m,)."""
        import numpy as np

        if callable(self.aggregate):
            return table, self.aggregate
        known = np.isfinite(table)
        return np.concatenate([np.where(known, table, 0.0), known.astype(float)], axis=1), ratio


def each(value: Callable[[Any, Any, Any], float | None]) -> PerExample:
    """A `per_example` from a function of (task, record, prediction); None becomes nan."""

    def values(task: Any, records: Sequence[Any], predictions: Sequence[Any]) -> list[float]:
        found = (value(task, r, p) for r, p in zip(records, predictions, strict=True))
        return [math.nan if v is None else float(v) for v in found]

    return values


def ratio(sums: Array) -> Any:
    """Σ of the first column / Σ of the second, (m, 2) → (m,); nan if the second is 0."""
    import numpy as np

    return sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)


def mean(values: Sequence[float]) -> float:
    """The mean of the non-nan values; nan if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def kept_columns(measures: Sequence[Measure], tables: Mapping[str, Array]) -> dict[str, list[float]]:
    """Column → its value on each example, for the predictions file."""
    found: dict[str, list[float]] = {}
    for measure in measures:
        for name, values in zip(measure.kept, tables[measure.name].T, strict=False):
            found.setdefault(name, values.tolist())
    return found
