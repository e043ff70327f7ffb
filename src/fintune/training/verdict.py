"""What a trained adapter's answers to validation examples warn of, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fintune.data.prepare.dataset import PreparedDataset
from fintune.tasks import Prediction, Record, Task, TaskSet

FEW = 50
"""A task with fewer validation examples is warned of."""
ALIKE = 5
"""Answers from which on it means something that all are the same."""

Answers = tuple[Sequence[Record], Sequence[Prediction]]


def warnings(tasks: TaskSet, answers: Mapping[str, Answers], prepared: PreparedDataset) -> list[str]:
    """A sentence for each task that answers one label, or less well than its simplest baseline; and one for
    all that have few validation examples."""
    found: list[str] = []
    counts = {name: prepared.manifest["tasks"][name]["counts"]["validation"] for name in answers}
    for name, (records, predictions) in answers.items():
        train = prepared.records(name, "train")
        found += filter(None, [_one_label(tasks[name], predictions, records)])
        found += filter(None, [_below_baseline(tasks[name], predictions, records, train)])
    few = ", ".join(f"{name} {count}" for name, count in counts.items() if count < FEW)
    if few:
        found.append(
            f"Fewer than {FEW} validation examples: {few}. Which step is best, and what validation says, are "
            "uncertain, and no temperature is fitted to so few. Add rows, or raise data.validation_fraction."
        )
    return found


def _one_label(task: Task, predictions: Sequence[Prediction], records: Sequence[Record]) -> str:
    given, wanted = {str(p.value) for p in predictions}, {str(r.target) for r in records}
    if not task.labels or len(predictions) < ALIKE or len(given) > 1 or given == wanted:
        return ""
    return (
        f"{task.name}: all of {len(predictions)} validation examples are answered {given.pop()!r}, whatever "
        "they say. Train for more steps, or see in fintune data report whether texts and labels belong "
        "together."
    )


def _below_baseline(
    task: Task, predictions: Sequence[Prediction], records: Sequence[Record], train: Sequence[Record]
) -> str:
    """Compared by the measure that ranks the type's answers, on the same examples."""
    measure = task.ranking
    if measure is None:
        return ""
    system, plain = task.baseline(train, records)
    own, other = (measure.of(measure.table(task, records, found)) for found in (predictions, plain))
    worse = own < other if measure.better == "higher" else own > other
    if not worse or not math.isfinite(own - other):
        return ""
    return (
        f"{task.name} is worse than its simplest baseline ({system}) on {len(records)} validation examples: "
        f"{measure.title} {own:.3g} against {other:.3g}. Train for more steps, or give it more rows."
    )
