"""Whether a system knows when it is right: reliability and risk–coverage, as points to plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fintune.tasks import Prediction, Record

BINS = 15
POINTS = 60


def confidence_curves(records: Sequence[Record], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Both curves of answers that carry probabilities; {} where one does not.

    Keys: `reliability`, rows of `n`, `confidence` and `accuracy` (means over at most 15 bins of equally many
    examples by the answer's probability); `risk_coverage`, rows of `coverage` (the share of examples
    answered when the least sure are left out, in (0, 1]) and `accuracy` among those.
    """
    import numpy as np

    if not predictions or any(not p.probabilities or p.value not in p.probabilities for p in predictions):
        return {}
    sure = np.array([p.probabilities[str(p.value)] for p in predictions])  # type: ignore[index]
    right = np.array([float(p.value == r.target) for r, p in zip(records, predictions, strict=True)])
    order = np.argsort(sure, kind="stable")
    reliability = [
        {"n": len(chosen), "confidence": float(sure[chosen].mean()), "accuracy": float(right[chosen].mean())}
        for chosen in np.array_split(order, min(BINS, len(order)))
    ]
    answered = np.cumsum(right[order[::-1]]) / np.arange(1, len(order) + 1)
    places = sorted({round(len(order) * (i + 1) / POINTS) for i in range(POINTS)} - {0})
    coverage = [{"coverage": n / len(order), "accuracy": float(answered[n - 1])} for n in places]
    return {"reliability": reliability, "risk_coverage": coverage}
