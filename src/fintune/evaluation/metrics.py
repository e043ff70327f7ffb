"""The measures of a task example by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fintune.text.answers import answer_scores, rouge_scores

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task


def score_examples(
    task: Task, records: Sequence[Record], predictions: Sequence[Prediction]
) -> dict[str, list[float]]:
    """The measures of a task example by example, the one that ranks errors first; {} for an unknown type.

    Classification: `correct` (1 or 0); regression: `absolute_error`, `squared_error`; qa: `f1`,
    `exact_match`; summarization: `rougeL`, `rouge1`, `rouge2`; instruction: `f1`, `rougeL`.
    """
    targets = [str(r.target) for r in records]
    answers = [str(p.value) for p in predictions]
    if task.type == "classification":
        return {"correct": [float(t == a) for t, a in zip(targets, answers, strict=True)]}
    if task.type == "regression":
        errors = [float(p.value) - float(r.target) for r, p in zip(records, predictions, strict=True)]  # type: ignore[arg-type]
        return {"absolute_error": [abs(e) for e in errors], "squared_error": [e * e for e in errors]}
    if task.type == "qa":
        pairs = [answer_scores(t, a) for t, a in zip(targets, answers, strict=True)]
        return {"f1": [f1 for _, f1 in pairs], "exact_match": [exact for exact, _ in pairs]}
    if task.type == "summarization":
        scores = rouge_scores([task.completion(r) for r in records], answers)
        return {name: scores[name] for name in ("rougeL", "rouge1", "rouge2")}
    if task.type == "instruction":
        f1 = [answer_scores(t, a)[1] for t, a in zip(targets, answers, strict=True)]
        return {"f1": f1, "rougeL": rouge_scores(targets, answers)["rougeL"]}
    return {}
