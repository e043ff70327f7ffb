"""Compares two runs example by example, or several runs of one recipe: differences, intervals, tests, spread.

Takes `Run`s on the same examples; returns a `Comparison` or a `Spread`, which can be saved as JSON.
"""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, Field

from fintune.errors import DataError
from fintune.evaluation.analysis.errors import shorten
from fintune.evaluation.intervals import (
    PERMUTATIONS,
    RESAMPLES,
    cluster_of,
    mcnemar,
    paired_differences,
)
from fintune.evaluation.measure_info import MeasureInfo
from fintune.evaluation.results import Answer, Interval
from fintune.evaluation.runs import Run, TaskAnswers, common_tasks
from fintune.evaluation.scores import metrics_of_rows

NAMED = 3
"""Examples shown of those won, and of those lost."""
TEXT_CHARACTERS = 200


class Side(BaseModel):
    """One of the runs compared."""

    path: str
    model: str


class CompareSettings(BaseModel):
    """How the intervals and tests were computed."""

    resamples: int
    permutations: int
    seed: int
    confidence: float


class Units(BaseModel):
    """The units that the intervals resample."""

    by: Literal["example", "cluster"]
    n: int


class Change(BaseModel):
    """One metric of A and B; None if it is not defined."""

    measure: MeasureInfo = Field(exclude=True)
    a: float | None
    b: float | None
    difference: float | None
    """b - a."""
    interval: Interval | None
    """95 %, paired bootstrap."""
    p_value: float | None
    test: str | None


class WonOrLost(BaseModel):
    """An example that one of the two runs answered better."""

    id: str
    text: str
    question: str | None = None
    target: str | float
    a: str | float
    b: str | float


class TaskComparison(BaseModel):
    """One task of two runs."""

    n: int
    clusters: Units
    metrics: dict[str, Change]
    measure: str | None = None
    """The column of `scores` by which B wins, loses or ties an example; None if no column ranks answers."""
    won: int = 0
    lost: int = 0
    tied: int = 0
    won_examples: list[WonOrLost] = []
    """The ones with the largest gaps."""
    lost_examples: list[WonOrLost] = []


class Comparison(BaseModel):
    """Run B against run A."""

    a: Side
    b: Side
    settings: CompareSettings
    tasks: dict[str, TaskComparison]


class Values(BaseModel):
    """One metric over several runs."""

    measure: MeasureInfo = Field(exclude=True)
    values: list[float]
    """One a run."""
    mean: float
    sd: float
    """The sample standard deviation, with n - 1 in the denominator."""
    low: float
    high: float
    n: int
    """Runs."""


class TaskSpread(BaseModel):
    """One task of several runs."""

    n: int
    """Test examples."""
    metrics: dict[str, Values]


class Spread(BaseModel):
    """Several runs of one recipe."""

    runs: list[Side]
    tasks: dict[str, TaskSpread]


def compare(
    a: Run,
    b: Run,
    *,
    task: str | None = None,
    metric: str | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Compare B with A on every task that both evaluated (or `task`), in every metric (or `metric`).

    Raises:
        DataError: the test examples differ, or no task or metric has this name.
    """
    names = common_tasks([a, b], task)
    found = {
        name: _compare_task(a.tasks[name], b.tasks[name], resamples, permutations, seed) for name in names
    }
    if metric is not None:
        _keep_metric(found, metric)
    settings = CompareSettings(resamples=resamples, permutations=permutations, seed=seed, confidence=0.95)
    return Comparison(a=_side(a), b=_side(b), settings=settings, tasks=found)


def _side(run: Run) -> Side:
    return Side(path=str(run.path), model=run.model)


def _keep_metric(tasks: dict[str, TaskComparison] | dict[str, TaskSpread], metric: str) -> None:
    known = sorted({name for entry in tasks.values() for name in entry.metrics})
    if metric not in known:
        raise DataError(f"--metric is {metric}, but the tasks have only: {', '.join(known)}.")
    for name in [name for name, entry in tasks.items() if metric not in entry.metrics]:
        del tasks[name]
    for entry in tasks.values():
        entry.metrics = {metric: entry.metrics[metric]}  # type: ignore[assignment]


def _compare_task(
    a: TaskAnswers, b: TaskAnswers, resamples: int, permutations: int, seed: int
) -> TaskComparison:
    order = list(a.rows)
    clusters = [
        cluster_of(isinstance(row.target, float), row.id, row.group, row.time) for row in a.rows.values()
    ]
    scores = {"a": a.scores(order), "b": b.scores(order)}
    one, two = (metrics_of_rows(run.result, [run.rows[i] for i in order]) for run in (a, b))
    tested = paired_differences(one, two, clusters, resamples=resamples, permutations=permutations, seed=seed)
    independent = len(set(clusters)) == len(order)
    metrics: dict[str, Change] = {}
    for name in [name for name in a.metrics if name in b.metrics]:
        x, y = a.metrics[name], b.metrics[name]
        gap = None if x is None or y is None else y - x
        row = Change(
            measure=b.result.measure(name), a=x, b=y, difference=gap, interval=None, p_value=None, test=None
        )
        if name in tested and gap is not None:
            row.interval, row.p_value = tested[name].interval, tested[name].p_value
            row.test = "permutation"
        if name == "accuracy" and independent:
            row.p_value = mcnemar(scores["a"]["correct"], scores["b"]["correct"])
            row.test = "McNemar, exact"
        metrics[name] = row
    found = TaskComparison(
        n=len(order),
        clusters=Units(by="example" if independent else "cluster", n=len(set(clusters))),
        metrics=metrics,
    )
    _count_wins(found, a, b, order, scores)
    return found


def _count_wins(
    found: TaskComparison,
    a: TaskAnswers,
    b: TaskAnswers,
    order: Sequence[str],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """Fill in the examples that B wins, loses and ties; nothing if no column ranks two answers."""
    ranking = b.result.ranking()
    if ranking is None or any(ranking[0] not in side for side in scores.values()):
        return
    column, measure = ranking
    sign = -1 if measure.better == "lower" else 1
    gains = [sign * (y - x) for x, y in zip(scores["a"][column], scores["b"][column], strict=True)]
    ranked = sorted(range(len(order)), key=lambda i: -abs(gains[i]))

    def named(wanted: int) -> list[WonOrLost]:
        chosen = [i for i in ranked if gains[i] * wanted > 0][:NAMED]
        return [_example(a.rows[order[i]], b.rows[order[i]]) for i in chosen]

    found.measure = column
    found.won, found.lost = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    found.tied = sum(gain == 0 for gain in gains)
    found.won_examples, found.lost_examples = named(1), named(-1)


def _example(a: Answer, b: Answer) -> WonOrLost:
    question = {"question": a.question} if a.question else {}
    text = shorten(a.text, TEXT_CHARACTERS)
    return WonOrLost(id=a.id, text=text, **question, target=a.target, a=a.prediction, b=b.prediction)


def spread(runs: Sequence[Run], *, task: str | None = None, metric: str | None = None) -> Spread:
    """Several runs of one recipe: mean and standard deviation of each metric that all of them have.

    Raises:
        DataError: fewer than two runs, different test examples, or no task or metric has this name.
    """
    if len(runs) < 2:
        raise DataError(f"--seeds needs at least two runs, got {len(runs)}: name their results files.")
    found: dict[str, TaskSpread] = {}
    for name in common_tasks(runs, task):
        metrics = {}
        for metric_name in runs[0].tasks[name].metrics:
            values = [run.tasks[name].metrics.get(metric_name) for run in runs]
            known = [value for value in values if value is not None and math.isfinite(value)]
            if len(known) == len(runs):
                metrics[metric_name] = Values(
                    measure=runs[0].tasks[name].result.measure(metric_name),
                    values=known,
                    mean=plain.fmean(known),
                    sd=plain.stdev(known),
                    low=min(known),
                    high=max(known),
                    n=len(known),
                )
        found[name] = TaskSpread(n=len(runs[0].tasks[name].rows), metrics=metrics)
    if metric is not None:
        _keep_metric(found, metric)
    return Spread(runs=[_side(run) for run in runs], tasks=found)
