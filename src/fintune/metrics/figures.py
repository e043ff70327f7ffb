"""The guide's figures of merit: targets and predictions in, named numbers out.

Shares (accuracy, F1, exact match, ROUGE) are fractions in [0, 1], never percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fintune.errors import DataError
from fintune.text.answers import answer_scores, rouge_scores


def _check(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
    if not targets:
        raise DataError("There is nothing to score: the set of examples is empty.")


def classification_metrics(
    targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Accuracy, and F1 averaged over `labels` plainly (macro) and by their frequency in `targets` (weighted).

    A label that is neither a target nor predicted has F1 = 0 and so lowers the macro average: every
    system is averaged over the same labels, even on few examples.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    from sklearn.metrics import accuracy_score, f1_score

    def f1(average: str) -> float:
        return float(f1_score(targets, predictions, labels=list(labels), average=average, zero_division=0))

    return {
        "accuracy": float(accuracy_score(targets, predictions)),
        "macro_f1": f1("macro"),
        "weighted_f1": f1("weighted"),
    }


def regression_metrics(targets: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Mean squared and mean absolute error, and R² = 1 - Σ(y - ŷ)² / Σ(y - ȳ)².

    ȳ is the mean of these very targets, so a forecast of the training mean has R² slightly below 0.
    R² of constant targets (or of one example) is not defined: nan, which a results file writes as null.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    constant = len(set(targets)) == 1
    return {
        "mse": float(mean_squared_error(targets, predictions)),
        "mae": float(mean_absolute_error(targets, predictions)),
        "r2": float("nan") if constant else float(r2_score(targets, predictions)),
    }


def qa_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Exact match and token F1 by the SQuAD rules (see `answer_scores`), averaged over the examples.

    Raises:
        DataError: there are no examples.
    """
    _check(targets, predictions)
    scores = [answer_scores(t, p) for t, p in zip(targets, predictions, strict=True)]
    exact, f1 = zip(*scores, strict=True)
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


def instruction_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Token F1 by the SQuAD rules (see `answer_scores`) and ROUGE-L, averaged over the examples.

    Raises:
        DataError: there are no examples.
        MissingExtraError: the package rouge-score is not installed.
    """
    _check(targets, predictions)
    f1 = [answer_scores(t, p)[1] for t, p in zip(targets, predictions, strict=True)]
    rouge = rouge_scores(targets, predictions)["rougeL"]
    return {"f1": sum(f1) / len(f1), "rougeL": sum(rouge) / len(rouge)}


def summarization_metrics(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin, 2004), with Porter stemming, averaged over the examples.

    rougeL takes the bullets as one sequence, so their order counts; it is the stricter of the package's
    two variants (rougeLsum matches bullet by bullet).

    Raises:
        DataError: there are no examples.
        MissingExtraError: the package rouge-score is not installed.
    """
    _check(targets, predictions)
    return {name: sum(s) / len(s) for name, s in rouge_scores(targets, predictions).items()}
