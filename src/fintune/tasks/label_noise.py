"""Find labels that may be wrong in the data: confident disagreements, and near copies with another label.

They are candidates for a person to check. Nothing is changed, and every figure includes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fintune.tasks.base import Analysed
from fintune.tasks.example import Prediction, Record

CANDIDATES = 25
NEAR_COPY = 0.8
"""The TF-IDF cosine from which a training text counts as a near copy of a test text."""


def candidates(targets: Sequence[str], answers: Analysed) -> dict[str, Any]:
    """At most `CANDIDATES` examples of each kind, and how many were `found`."""
    confident = []
    for i, gap in confident_disagreements(targets, answers.predictions):
        around = answers.nearest[i]
        agreeing = sum(str(r.target) == answers.predictions[i].value for r, _ in around)
        confident.append({**answers.example(i), "gap": gap, "neighbours_agree": [agreeing, len(around)]})
    nearest = [answers.nearest[i] for i in range(len(targets))]
    copies = [
        {**answers.example(i), "near_copy": answers.neighbour(record, cosine)}
        for i, record, cosine in near_copies(targets, nearest)
    ]
    return {
        "confident": confident[:CANDIDATES],
        "near_copies": copies[:CANDIDATES],
        "found": {"confident": len(confident), "near_copies": len(copies)},
    }


def confident_disagreements(
    targets: Sequence[str], predictions: Sequence[Prediction]
) -> list[tuple[int, float]]:
    """Examples whose probability of another label reaches that label's usual level.

    Confident learning (Northcutt et al., 2021, section 3.1): the threshold of label j is the mean probability
    of j over the examples labelled j. Example i with label y is a candidate if some other j has
    p_i(j) ≥ threshold(j); the likeliest such j must also be the model's answer.

    Returns:
        (index, p(answer) - p(label)), the widest gap first.
    """
    known: dict[str, list[float]] = {}
    for target, prediction in zip(targets, predictions, strict=True):
        if prediction.probabilities and target in prediction.probabilities:
            known.setdefault(target, []).append(prediction.probabilities[target])
    threshold = {label: sum(values) / len(values) for label, values in known.items()}
    found = []
    for i, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        shares: Mapping[str, float] = prediction.probabilities or {}
        answer = str(prediction.value)
        if answer != target and answer in threshold and shares.get(answer, 0.0) >= threshold[answer]:
            found.append((i, shares[answer] - shares.get(target, 0.0)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def near_copies(
    targets: Sequence[str], nearest: Sequence[Sequence[tuple[Record, float]]]
) -> list[tuple[int, Record, float]]:
    """Examples with a training text of cosine ≥ `NEAR_COPY` that has another label, most similar first."""
    found = []
    for i, (target, around) in enumerate(zip(targets, nearest, strict=True)):
        for record, cosine in around:
            if cosine >= NEAR_COPY and str(record.target) != target:
                found.append((i, record, cosine))
                break
    return sorted(found, key=lambda row: (-row[2], row[0]))
