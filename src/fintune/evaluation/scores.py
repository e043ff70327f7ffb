"""Scores a system's answers to one task by the measures of the task's type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fintune.evaluation.intervals import RESAMPLES, Metric, bootstrap_intervals, cluster_of
from fintune.metrics.measure import Measure, PerExample, kept_columns, mean

if TYPE_CHECKING:
    from fintune.evaluation.results import Answer, TaskResult
    from fintune.tasks import Prediction, Record, Task


def cluster_names(task: Task, records: Sequence[Record]) -> list[str]:
    """Each example's cluster: what dependent examples share; see `intervals.cluster_of`."""
    return [cluster_of(task.numeric, str(i), r.group, r.time) for i, r in enumerate(records)]


@dataclass(frozen=True)
class Scored:
    """Answers with their values of every measure."""

    task: Task
    records: Sequence[Record]
    predictions: Sequence[Prediction]
    measures: tuple[Measure, ...]
    tables: dict[str, Any]
    """Measure → (n, k) values."""

    @classmethod
    def of(
        cls,
        task: Task,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        more: Sequence[Measure] = (),
    ) -> Scored:
        """
        Args:
            more: measures in addition to the type's own.
        """
        import numpy as np

        measures = (*task.measures, *more)
        made: dict[PerExample, Any] = {}  # several measures may sum the same values, such as confusions
        for measure in measures:
            if measure.per_example not in made:
                made[measure.per_example] = measure.table(task, records, predictions)
        tables = {measure.name: made[measure.per_example] for measure in measures}
        kept = tuple(m for m in measures if not m.optional or np.isfinite(tables[m.name]).any())
        return cls(task, records, predictions, kept, {m.name: tables[m.name] for m in kept})

    def metrics(self) -> dict[str, float]:
        """Every measure, then what a plug-in adds; nan if undefined."""
        own = {measure.name: measure.of(self.tables[measure.name]) for measure in self.measures}
        return own | self.task.own_metrics(self.records, self.predictions)

    @cached_property
    def columns(self) -> dict[str, list[float]]:
        """Column of the predictions file → its value per example; nan if there is none."""
        return kept_columns(self.measures, self.tables)

    def intervals(
        self, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """The interval of each metric that has one; see `intervals.bootstrap_intervals`."""
        summable = {m.name: m.summable(self.tables[m.name]) for m in self.measures if not m.whole}
        clusters = cluster_names(self.task, self.records)
        shares = [m.name for m in self.measures if m.share]
        return bootstrap_intervals(
            summable, clusters, shares=shares, confidence=confidence, resamples=resamples, seed=seed
        )

    def details(self) -> dict[str, Any]:
        """Figures beyond single numbers: the type's own, and `by_kind` if there are several kinds."""
        details = self.task.details(self.records, self.predictions) if self.records else {}
        kinds = [record.kind for record in self.records]
        if self.measures and len(set(kinds)) > 1:
            details["by_kind"] = {kind: self._among(kinds, kind) for kind in sorted(set(kinds))}
        return details

    def _among(self, kinds: Sequence[str], kind: str) -> dict[str, Any]:
        """n and the mean of each averaged measure, among the examples of one kind."""
        chosen = [i for i, other in enumerate(kinds) if other == kind]
        means = {
            m.name: mean(self.tables[m.name][chosen, 0].tolist())
            for m in self.measures
            if m.aggregate == "mean"
        }
        return {"n": len(chosen), **{name: v if math.isfinite(v) else None for name, v in means.items()}}

    def subset(self, chosen: Sequence[int]) -> Scored:
        """The same for some of the examples, by index."""
        return Scored(
            self.task,
            [self.records[i] for i in chosen],
            [self.predictions[i] for i in chosen],
            self.measures,
            {name: table[list(chosen)] for name, table in self.tables.items()},
        )


def metrics_of_rows(result: TaskResult, rows: Sequence[Answer]) -> dict[str, Metric]:
    """The metrics that are functions of sums, from rows of a predictions file: name → summands and metric.

    For an unknown type, and for metrics that a type does not name, only means: of the file's own columns.
    """
    import numpy as np

    from fintune.tasks import Prediction, Record
    from fintune.tasks.types import task_type

    kind = task_type(result.type)
    task = kind.stand_in("", result.labels) if kind else None
    measures = {m.name: m for m in task.measures if not m.whole} if task else {}
    for info in result.measures:
        if info.name not in measures and len(info.columns) == 1:
            measures[info.name] = Measure(info.name, info.title, lambda *_: (), columns=tuple(info.columns))
    records = [Record(r.text, target=r.target, question=r.question, kind=r.kind) for r in rows]
    answers = [Prediction(r.prediction, r.probabilities, r.interval) for r in rows]
    columns = set(rows[0].scores) if rows else set()
    found: dict[str, Metric] = {}
    for measure in measures.values():
        if measure.kept and set(measure.kept) <= columns:
            values = [[_known(row.scores.get(name)) for name in measure.kept] for row in rows]
            found[measure.name] = measure.summable(np.array(values, float))
        elif not measure.kept:  # targets and answers determine its values
            found[measure.name] = measure.summable(measure.table(task, records, answers))
    return found


def _known(value: float | None) -> float:
    return math.nan if value is None else value
