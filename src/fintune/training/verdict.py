"""Warns, in sentences, of what a trained adapter's validation answers show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fintune.tasks import Prediction, Record, Task, TaskSet

FEW = 50
"""A task with fewer validation examples gets a warning."""
ALIKE = 5
"""From this many answers on, identical answers get a warning."""

Answers = tuple[Sequence[Record], Sequence[Prediction]]
Baselines = Mapping[str, tuple[str, Sequence[Prediction]]]
Split = Mapping[str, Sequence[Record]]


def baselines(tasks: TaskSet, train: Split, validation: Split) -> Baselines:
    """The simplest baseline's name and answers by task, computed before training: data may be gone later."""
    return {
        name: tasks[name].baseline(train[name], rows)
        for name, rows in validation.items()
        if tasks[name].ranking is not None
    }


def warnings(
    tasks: TaskSet, answers: Mapping[str, Answers], manifest: Mapping[str, Any], plain: Baselines
) -> list[str]:
    """A warning for each task that gives one label only or is worse than its simplest baseline, and one for
    all tasks with few validation examples.

    Args:
        manifest: the prepared data's manifest.
        plain: the baselines' answers to at least the records answered, in the same order.
    """
    found: list[str] = []
    counts = {name: manifest["tasks"][name]["counts"]["validation"] for name in answers}
    for name, (records, predictions) in answers.items():
        task, baseline = tasks[name], plain.get(name, ("", ()))
        worse = _below_baseline(task, predictions, records, *baseline)
        found += filter(None, [_one_label(task, predictions, records), worse])
    few = ", ".join(f"{name} {count}" for name, count in counts.items() if count < FEW)
    if few:
        found.append(
            f"Fewer than {FEW} validation examples: {few}. The choice of the best step and the validation "
            "figures are uncertain, and no temperature is fitted. Add rows, or raise "
            "data.validation_fraction."
        )
    return found


def _one_label(task: Task, predictions: Sequence[Prediction], records: Sequence[Record]) -> str:
    given, wanted = {str(p.value) for p in predictions}, {str(r.target) for r in records}
    if not task.labels or len(predictions) < ALIKE or len(given) > 1 or given == wanted:
        return ""
    return (
        f"{task.name}: the adapter answers all {len(predictions)} validation examples with {given.pop()!r}. "
        "Train for more steps, or check with fintune data report that texts and labels belong together."
    )


def _below_baseline(
    task: Task,
    predictions: Sequence[Prediction],
    records: Sequence[Record],
    system: str,
    plain: Sequence[Prediction],
) -> str:
    """Compare by the measure that ranks the type's answers, on the same examples."""
    measure = task.ranking
    if measure is None:
        return ""
    both = (predictions, plain[: len(records)])
    own, other = (measure.of(measure.table(task, records, found)) for found in both)
    worse = own < other if measure.better == "higher" else own > other
    if not worse or not math.isfinite(own - other):
        return ""
    return (
        f"{task.name} is worse than its simplest baseline ({system}) on {len(records)} validation examples: "
        f"{measure.title} {own:.3g} against {other:.3g}. Train for more steps, or give it more rows."
    )
