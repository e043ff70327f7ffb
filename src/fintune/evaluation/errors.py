"""Where a system goes wrong: its confusions, its worst examples, and whether long texts are harder.

Only summaries and a few short examples are kept here; every prediction stands in the predictions file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fintune.evaluation.metrics import score_examples

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

WORST = 10
TEXT_CHARACTERS = 300

_MEASURES = {
    "classification": "error_rate",
    "regression": "mae",
    "qa": "f1",
    "summarization": "rougeL",
    "instruction": "f1",
}
"""Type → the measure that is compared across text lengths: the mean of the first one of `score_examples`
(of its complement, for classification)."""


def shorten(text: str, limit: int) -> str:
    """The text on at most `limit` characters, cut with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def confusion_matrix(
    labels: Sequence[str], targets: Sequence[str], predictions: Sequence[str]
) -> list[list[int]]:
    """Counts; rows are targets, columns predictions, both in the order of `labels`."""
    from sklearn.metrics import confusion_matrix as matrix

    return matrix(targets, predictions, labels=list(labels)).tolist()


def _by_length(texts: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """The mean score in thirds of the examples by text length in words (fewer where lengths are equal)."""
    import numpy as np

    words = np.array([len(text.split()) for text in texts])
    values = np.array(scores)
    third = np.searchsorted(np.quantile(words, [1 / 3, 2 / 3]), words, side="left")
    rows = []
    for i, name in enumerate(("short", "medium", "long")):
        inside = third == i
        if inside.any():
            span = [int(words[inside].min()), int(words[inside].max())]
            mean = float(values[inside].mean())
            rows.append({"length": name, "words": span, "n": int(inside.sum()), "value": mean})
    return rows


def _worst(task: Task, predictions: Sequence[Prediction], scores: Sequence[float]) -> list[int]:
    """Indices of the worst examples, worst first; none whose answer is right."""
    order = range(len(predictions))
    if task.type == "classification":
        wrong = [i for i in order if not scores[i]]
        return sorted(wrong, key=lambda i: -max((predictions[i].probabilities or {"": 0.0}).values()))[:WORST]
    if task.type == "regression":
        return sorted(order, key=lambda i: -scores[i])[:WORST]
    return sorted((i for i in order if scores[i] < 1), key=lambda i: scores[i])[:WORST]


def analyse(task: Task, records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The error analysis of one system on one task; {} for a task type that has no measures here.

    Keys: `measure` and `by_length` (its mean in thirds of the examples by words of text), `worst` (at most
    10: the most confident wrong labels, the largest residuals, the lowest F1 or ROUGE-L), and for
    classification `confusion`.
    """
    by_measure = score_examples(task, records, predictions)
    if not by_measure:
        return {}
    name, scores = next(iter(by_measure.items()))
    means = [1 - score for score in scores] if task.type == "classification" else scores
    worst = _worst(task, predictions, scores)
    found: dict[str, Any] = {
        "measure": _MEASURES[task.type],
        "by_length": _by_length([r.text for r in records], means),
        "worst": [_example(records[i], predictions[i], name, scores[i]) for i in worst],
    }
    if task.type == "classification":
        labels = task.candidates()
        targets, answers = [str(r.target) for r in records], [str(p.value) for p in predictions]
        found["confusion"] = {"labels": labels, "matrix": confusion_matrix(labels, targets, answers)}
    return found


def _example(record: Record, prediction: Prediction, measure: str, score: float) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "text": shorten(record.text, TEXT_CHARACTERS)}
    if record.question:
        row["question"] = record.question
    row |= {"target": record.target, "prediction": prediction.value}
    if measure == "correct":
        row["confidence"] = max((prediction.probabilities or {"": 0.0}).values())
    else:
        row[measure] = score
    return row
