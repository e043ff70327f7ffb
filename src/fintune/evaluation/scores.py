"""Every measure of a system on a task: example by example, as metrics, and as the points of plots.

The guide's metrics are the task's own (`Task.metrics`); the further ones of docs/evaluation.md are made here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from fintune.evaluation.metrics import score_examples
from fintune.metrics import reliability
from fintune.tasks.base import INTERVAL
from fintune.text.numbers import numeric_match, supported_numbers, tatqa_scores

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record, Task

Scores = dict[str, list[float]]
"""Measure → its value on each example; nan where it does not apply to that example."""

TATQA_KINDS = frozenset({"span", "multi-span", "arithmetic", "count"})
METRIC_OF = {
    "correct": "accuracy",
    "absolute_error": "mae",
    "squared_error": "mse",
    "missing": "missing_rate",
    "numeric_match": "numeric_exact_match",
    "same_direction": "directional_accuracy",
    "covered": "interval_coverage",
    "interval_width": "mean_interval_width",
}
"""Measure → the metric that is its mean, where their names differ."""
_COUNTS = ("numbers", "numbers_supported")


def interval_of(prediction: Prediction) -> tuple[float, float] | None:
    """The central 80 % interval of a number: the prediction's own, else from its levels' probabilities."""
    if prediction.interval is not None:
        return float(prediction.interval[0]), float(prediction.interval[1])
    if not prediction.probabilities:
        return None
    levels = sorted((float(level), p) for level, p in prediction.probabilities.items())
    low, high = central_range([p for _, p in levels])
    return levels[low][0], levels[high][0]


def central_range(shares: Sequence[float]) -> tuple[int, int]:
    """The first and last index of the middle of a distribution: at most a tenth is left out at either end.

    The first whose cumulative share reaches 0.1 of the total, and that which reaches 0.9.
    """
    total = list(accumulate(shares))
    tail = (1 - INTERVAL) / 2
    # A sum that rounding keeps just below a bound has reached it.
    low = next(i for i, mass in enumerate(total) if mass >= tail * total[-1] - 1e-9)
    high = next(i for i, mass in enumerate(total) if mass >= (1 - tail) * total[-1] - 1e-9)
    return low, high


def example_scores(task: Task, records: Sequence[Record], predictions: Sequence[Prediction]) -> Scores:
    """`score_examples`, and further measures by example; {} for a task of an unknown type.

    Classification: `brier`; regression: `same_direction`, `covered`, `interval_width`; qa: `numeric_match`
    and, on TAT-QA's answer types, `tatqa_exact_match`, `tatqa_f1`; summarization: `numbers` and
    `numbers_supported`, counts; all: `missing`.
    """
    scores: Scores = dict(score_examples(task, records, predictions))
    if not scores:
        return {}
    pairs = list(zip(records, predictions, strict=True))
    nan = math.nan
    scores["missing"] = [float(_missing(task, p)) for p in predictions]
    if task.type == "classification":
        scores["brier"] = [
            reliability.brier(p.probabilities, str(r.target)) if p.probabilities else nan for r, p in pairs
        ]
    elif task.type == "regression":
        truth = [(float(r.target), p) for r, p in pairs]  # type: ignore[arg-type]
        bounds = [interval_of(p) for p in predictions]
        scores["same_direction"] = [float(y * float(p.value) > 0) if y else nan for y, p in truth]
        scores["covered"] = [
            float(b[0] <= y <= b[1]) if b else nan for (y, _), b in zip(truth, bounds, strict=True)
        ]
        scores["interval_width"] = [b[1] - b[0] if b else nan for b in bounds]
    elif task.type == "qa":
        matches = [numeric_match(str(r.target), str(p.value)) for r, p in pairs]
        scores["numeric_match"] = [nan if match is None else match for match in matches]
        if any(r.kind in TATQA_KINDS for r in records):
            both = [
                tatqa_scores(str(r.target), str(p.value), r.kind) if r.kind in TATQA_KINDS else (nan, nan)
                for r, p in pairs
            ]
            scores["tatqa_exact_match"] = [exact for exact, _ in both]
            scores["tatqa_f1"] = [f1 for _, f1 in both]
    elif task.type == "summarization":
        found = [supported_numbers(str(p.value), r.text) for r, p in pairs]
        scores["numbers"] = [float(total) for _, total in found]
        scores["numbers_supported"] = [float(supported) for supported, _ in found]
    return scores


def _missing(task: Task, prediction: Prediction) -> bool:
    if task.type == "classification":
        return prediction.value not in task.candidates()
    if task.type == "regression":
        return not math.isfinite(float(prediction.value))
    return not str(prediction.value).strip()


def mean(values: Sequence[float]) -> float:
    """The mean of what is not nan; nan where nothing is left."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def metrics_of(
    task: Task, records: Sequence[Record], predictions: Sequence[Prediction], scores: Scores
) -> dict[str, float]:
    """The task's own metrics (and a plug-in's), then the further ones; nan where one is not defined.

    Means of `scores` (see `METRIC_OF`), and: `mcc`, the multi-class correlation of Matthews (1975) and
    Gorodkin (2004), -1 to 1; `ece` and `aurc` (see `calibration`); `spearman`, the rank correlation, -1 to 1;
    `number_faithfulness`, supported numbers / all numbers over all summaries.
    """
    metrics = dict(task.score(records, predictions))
    for measure, values in scores.items():
        if measure not in _COUNTS:
            metrics.setdefault(METRIC_OF.get(measure, measure), mean(values))
    if task.type == "classification" and scores:
        metrics["mcc"] = mcc([str(r.target) for r in records], [str(p.value) for p in predictions])
        sure = confidences(predictions)
        metrics["ece"] = reliability.expected_calibration_error(sure, scores["correct"]) if sure else math.nan
        metrics["aurc"] = reliability.aurc(sure, scores["correct"]) if sure else math.nan
    elif task.type == "regression" and scores:
        metrics["spearman"] = spearman(
            [float(r.target) for r in records],  # type: ignore[arg-type]
            [float(p.value) for p in predictions],
        )
    elif task.type == "summarization" and scores:
        total = sum(scores["numbers"])
        metrics["number_faithfulness"] = sum(scores["numbers_supported"]) / total if total else math.nan
    return metrics


def confidences(predictions: Sequence[Prediction]) -> list[float]:
    """The probability of each answer; [] where some answer has none."""
    if not all(p.probabilities for p in predictions):
        return []
    return [(p.probabilities or {}).get(str(p.value), 0.0) for p in predictions]


def mcc(targets: Sequence[str], predictions: Sequence[str]) -> float:
    """The multi-class correlation; 0 where either side has one label only, as in scikit-learn."""
    from sklearn.metrics import matthews_corrcoef

    if len(set(targets)) < 2 or len(set(predictions)) < 2:  # there is nothing that it would not warn of
        return 0.0
    return float(matthews_corrcoef(targets, predictions))


def spearman(targets: Sequence[float], predictions: Sequence[float]) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; nan where either side is constant."""
    from scipy.stats import spearmanr

    if len(set(targets)) < 2 or len(set(predictions)) < 2:
        return math.nan
    return float(spearmanr(targets, predictions).statistic)


def details_of(
    task: Task, records: Sequence[Record], predictions: Sequence[Prediction], scores: Scores
) -> dict[str, Any]:
    """What is more than a number: `per_class`, `reliability`, `risk_coverage`; `by_kind`; `strategy`.

    Per class: precision, recall, F1 and n (0 where nothing was predicted, as everywhere here); by kind
    (TAT-QA's answer types, FinQA's operations): n and the mean of each measure.
    """
    details: dict[str, Any] = {}
    if task.type == "classification" and scores:
        details["per_class"] = _per_class(task, records, predictions)
        if sure := confidences(predictions):
            details["reliability"] = reliability.reliability(sure, scores["correct"])
            details["risk_coverage"] = reliability.risk_coverage(sure, scores["correct"])
    kinds = [r.kind for r in records]
    if scores and len(set(kinds)) > 1:
        details["by_kind"] = {kind: _among(scores, kinds, kind) for kind in sorted(set(kinds))}
    if task.type == "regression" and scores and getattr(task, "unit", "") == "%":
        from fintune.metrics.strategy import strategy

        curve = strategy(
            [r.time[:10] for r in records],
            [float(r.target) for r in records],  # type: ignore[arg-type]
            [float(p.value) for p in predictions],
        )
        if curve:
            details["strategy"] = curve
    return details


def _among(scores: Mapping[str, Sequence[float]], kinds: Sequence[str], kind: str) -> dict[str, Any]:
    chosen = [i for i, other in enumerate(kinds) if other == kind]
    means = {
        METRIC_OF.get(measure, measure): mean([values[i] for i in chosen])
        for measure, values in scores.items()
        if measure not in _COUNTS
    }
    return {"n": len(chosen), **{name: v if math.isfinite(v) else None for name, v in means.items()}}


def _per_class(
    task: Task, records: Sequence[Record], predictions: Sequence[Prediction]
) -> dict[str, dict[str, float]]:
    from sklearn.metrics import precision_recall_fscore_support

    labels = task.candidates()
    columns = precision_recall_fscore_support(
        [str(r.target) for r in records],
        [str(p.value) for p in predictions],
        labels=labels,
        zero_division=0,
    )
    names = ("precision", "recall", "f1", "n")
    return {
        label: {
            name: (int if name == "n" else float)(column[i])
            for name, column in zip(names, columns, strict=True)
        }
        for i, label in enumerate(labels)
    }
