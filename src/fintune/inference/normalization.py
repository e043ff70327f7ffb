"""Whether labels are compared by log p of all their tokens or by its mean: what validation answers better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fintune.config import EvaluationConfig
from fintune.inference.engine import Engine
from fintune.tasks import Record, Task
from fintune.tasks.base import Normalization

NORMALIZATION_EXAMPLES = 300
"""Validation examples of a task that are scored both ways, at most."""


def choose_normalization(
    engine: Engine, validation: Mapping[str, Sequence[Record]], config: EvaluationConfig
) -> dict[str, str]:
    """Set each label task's `normalization`; return the choices by task.

    The recipe's own choice holds where it is not `auto`. Labels of equally many tokens are not tried: their
    order is the same either way. Of equal accuracies `none`, the plain likelihood, is taken.
    """
    chosen: dict[str, str] = {}
    for name, records in validation.items():
        task = engine.tasks[name]
        if task.type != "classification":
            continue
        if config.label_normalization != "auto":
            task.normalization = config.label_normalization
        else:
            lengths = {len(engine.template.completion_ids(label)) for label in task.candidates()}
            task.normalization = "none"
            if len(lengths) > 1 and records:
                right = {how: _right(engine, task, records, how) for how in ("none", "tokens")}
                task.normalization = "tokens" if right["tokens"] > right["none"] else "none"
        chosen[name] = task.normalization
    return chosen


def _right(engine: Engine, task: Task, records: Sequence[Record], how: str) -> int:
    """How many of the records are answered right."""
    normalization: Normalization = "tokens" if how == "tokens" else "none"
    task.normalization = normalization
    answers = engine.predict(task.name, records)
    return sum(answer.value == record.target for answer, record in zip(answers, records, strict=True))
