"""Calibration of probabilities, and accuracy as a function of abstention.

Probabilities and outcomes in, metrics and plot points out. Ties never depend on the examples' order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BINS = 15
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def brier(probabilities: Mapping[str, float], target: str) -> float:
    """Brier's score (1950) of one forecast: Σ over labels of (p - [label is the target])², from 0 to 2.

    For two labels, some authors define it as half of this.
    """
    missed = 0.0 if target in probabilities else 1.0
    return missed + sum((p - (label == target)) ** 2 for label, p in probabilities.items())


def reliability(
    confidences: Sequence[float], correct: Sequence[float], bins: int = BINS
) -> list[dict[str, float]]:
    """The reliability curve: mean `confidence`, `accuracy` and `n` of each bin, in order of confidence.

    Bins hold equally many examples (equal mass), but equal confidences share a bin; empty bins are left out.
    """
    import numpy as np

    sure, right = np.asarray(confidences, float), np.asarray(correct, float)
    edges = np.quantile(sure, np.arange(1, bins) / bins)
    place = np.searchsorted(edges, sure, side="left")
    curve = []
    for i in range(bins):
        inside = place == i
        if inside.any():
            curve.append(
                {
                    "confidence": float(sure[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "n": int(inside.sum()),
                }
            )
    return curve


def expected_calibration_error(
    confidences: Sequence[float], correct: Sequence[float], bins: int = BINS
) -> float:
    """ECE = Σ over bins of (n_bin / n) · |accuracy - confidence|, 15 bins of equal mass.

    Naeini et al. (2015) with the adaptive bins of Nguyen and O'Connor (2015): bins of equal width are nearly
    empty where a model is seldom unsure. Uses only the answer's probability, not every label's.
    """
    curve = reliability(confidences, correct, bins)
    return sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in curve) / len(confidences)


def _risks(confidences: Sequence[float], correct: Sequence[float]) -> Any:
    """The error rate among the i most confident answers, for i = 1…n; ties share their mean error."""
    import numpy as np

    sure, wrong = np.asarray(confidences, float), 1 - np.asarray(correct, float)
    order = np.argsort(-sure, kind="stable")
    _, group, sizes = np.unique(-sure[order], return_inverse=True, return_counts=True)
    shared = np.bincount(group, wrong[order]) / sizes
    return np.cumsum(shared[group]) / np.arange(1, len(sure) + 1)


def aurc(confidences: Sequence[float], correct: Sequence[float]) -> float:
    """Area under the risk–coverage curve: the mean, over i = 1…n, of the error rate of the i surest answers.

    Smaller is better; uninformative confidence gives the error rate (Geifman and El-Yaniv, 2017; Geifman et
    al., 2019).
    """
    return float(_risks(confidences, correct).mean())


def risk_coverage(confidences: Sequence[float], correct: Sequence[float]) -> list[dict[str, float]]:
    """`accuracy` of the most confident share `coverage` of answers, `n`, and the confidence `threshold`."""
    import math

    risks, n = _risks(confidences, correct), len(confidences)
    ranked = sorted(confidences, reverse=True)
    rows = []
    for coverage in COVERAGES:
        kept = math.ceil(round(coverage * n, 9))
        accuracy, threshold = 1 - float(risks[kept - 1]), float(ranked[kept - 1])
        rows.append({"coverage": coverage, "accuracy": accuracy, "threshold": threshold, "n": kept})
    return rows
