"""A figure of merit, said once: its name, its value on each example, and how examples are summed up.

Metrics, bootstrap intervals, paired tests, report rows and comparisons all come from a type's `Measure`s.
Tasks, records and predictions pass through as they are: nothing here reads them.

Shapes: n examples, k values an example, m sets of examples (one, or as many as there are resamples).
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
"""(task, records, predictions) → (n,) values, nan where there is none, or (n, k) for an `aggregate` of its
own."""


@dataclass(frozen=True)
class Measure:
    """One figure of merit.

    `Measure("f1", "F1 (tokens)", each(lambda task, record, prediction: ...))` is a whole definition. A metric
    that is no mean gives k values an example, and a function from their sums to the metric: R² gives 1, y, y²
    and (y − ŷ)². What is no function of sums (`whole`), such as a calibration error, takes all values and has
    no interval.
    """

    name: str
    """The key in results files, such as `macro_f1`."""
    title: str
    """What tables call it."""
    per_example: PerExample
    better: Literal["higher", "lower", "neither"] = "higher"
    aggregate: Literal["mean"] | Callable[[Array], Any] = "mean"
    """`mean` of what is not nan; else (m, k) sums → (m,) values, or if `whole` (n, k) values → one value."""
    columns: tuple[str, ...] = ()
    """What the k values are called in the predictions file. () of a mean is its name; () of another
    `aggregate` means that they are not kept, since targets and answers give them again."""
    share: bool = False
    """From 0 to 1, such as an accuracy or an F1; its interval is never a point."""
    whole: bool = False
    optional: bool = False
    """Left out where no example has a value."""
    further: bool = False
    """Part of an evaluation, not of the validation during training."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns in the predictions file."""
        return self.columns or ((self.name,) if self.aggregate == "mean" else ())

    @property
    def column(self) -> str:
        """The column that ranks answers by this measure: its first one, or its name where none is kept."""
        return (*self.kept, self.name)[0]

    def table(self, task: Any, records: Sequence[Any], predictions: Sequence[Any]) -> Array:
        """The values of each example, (n, k) float64."""
        import numpy as np

        values = np.asarray(self.per_example(task, records, predictions), float)
        return values.reshape(len(records), -1)

    def of(self, table: Array) -> float:
        """The metric of some examples; nan where it is not defined.

        Args:
            table: (n, k) values, as `table` returns them.
        """
        if self.whole:
            assert callable(self.aggregate)
            return float(self.aggregate(table))
        summands, of_sums = self.summable(table)
        return float(of_sums(summands.sum(axis=0, keepdims=True))[0])

    def summable(self, table: Array) -> tuple[Array, Callable[[Array], Any]]:
        """What is to be summed over examples, (n, k), and the metric of m such sums, (m, k) → (m,)."""
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
    """Σ of the first column / Σ of the second, (m, 2) → (m,); nan where the second is 0."""
    import numpy as np

    return sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan)


def mean(values: Sequence[float]) -> float:
    """The mean of what is not nan; nan where nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def kept_columns(measures: Sequence[Measure], tables: Mapping[str, Array]) -> dict[str, list[float]]:
    """Column → its value on each example, for the predictions file."""
    found: dict[str, list[float]] = {}
    for measure in measures:
        for name, values in zip(measure.kept, tables[measure.name].T, strict=False):
            found.setdefault(name, values.tolist())
    return found
