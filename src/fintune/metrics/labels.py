"""Label metrics as functions of sums: F1 and MCC of confusion counts, micro and macro F1 of label sets.

Shapes: n examples, m sets of examples, K labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


def confusion_cells(labels: Sequence[str], targets: Sequence[str], answers: Sequence[str]) -> Array:
    """One-hot cells of the flattened confusion matrix, one row per example: (n, (K + 1)²).

    The last row and column stand for anything that is not a label. Cell (i, j) of target i and answer j is at
    i · (K + 1) + j.
    """
    import numpy as np

    place = {label: i for i, label in enumerate(labels)}
    side = len(place) + 1
    cells = [
        place.get(t, side - 1) * side + place.get(a, side - 1) for t, a in zip(targets, answers, strict=True)
    ]
    table = np.zeros((len(cells), side * side))
    table[np.arange(len(cells)), cells] = 1
    return table


def _matrices(sums: Array) -> Array:
    """(m, (K + 1)²) → (m, K + 1, K + 1)."""
    side = math.isqrt(sums.shape[1])
    return sums.reshape(-1, side, side)


def _f1_by_label(sums: Array) -> tuple[Array, Array]:
    """F1 and the number of targets of each label, both (m, K); F1 is 0 if a label never occurs."""
    import numpy as np

    matrices = _matrices(sums)
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    total = matrices.sum(axis=1) + matrices.sum(axis=2)  # answers + targets = 2 · hits + both kinds of misses
    f1 = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return f1[:, :-1], matrices.sum(axis=2)[:, :-1]


def macro_f1(sums: Array) -> Any:
    """Unweighted mean F1 over all labels.

    A label that is neither a target nor an answer has F1 = 0 and lowers the mean: every system is averaged
    over the same labels, even on few examples.
    """
    return _f1_by_label(sums)[0].mean(axis=1)


def weighted_f1(sums: Array) -> Any:
    """F1 averaged over the labels, weighted by their frequency among the targets."""
    f1, support = _f1_by_label(sums)
    return (f1 * support).sum(axis=1) / support.sum(axis=1)


def mcc(sums: Array) -> Any:
    """The multi-class correlation of Matthews (1975) and Gorodkin (2004), −1 to 1; 0 if either side has only
    one label, as in scikit-learn."""
    import numpy as np

    matrices = _matrices(sums)
    hits = np.trace(matrices, axis1=1, axis2=2)
    true, got = matrices.sum(axis=2), matrices.sum(axis=1)
    n = true.sum(axis=1)
    shared = hits * n - (true * got).sum(axis=1)
    spread = (n * n - (true * true).sum(axis=1)) * (n * n - (got * got).sum(axis=1))
    return np.divide(shared, np.sqrt(spread), out=np.zeros_like(shared), where=spread > 0)


def confusion_matrix(
    labels: Sequence[str], targets: Sequence[str], answers: Sequence[str]
) -> list[list[int]]:
    """Counts, (K, K): rows are targets, columns answers, both in the order of `labels`."""
    sums = confusion_cells(labels, targets, answers).sum(axis=0, keepdims=True)
    return _matrices(sums)[0, :-1, :-1].astype(int).tolist()


def per_label(hits: Mapping[str, tuple[int, int, int]]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and n of each label; 0 if nothing was answered or expected.

    Args:
        hits: label → (right answers, all its answers, all its targets).
    """
    return {
        label: {
            "precision": right / answered if answered else 0.0,
            "recall": right / expected if expected else 0.0,
            "f1": 2 * right / (answered + expected) if answered + expected else 0.0,
            "n": expected,
        }
        for label, (right, answered, expected) in hits.items()
    }


def set_counts(
    labels: Sequence[str], targets: Sequence[frozenset[str]], answers: Sequence[frozenset[str]]
) -> Array:
    """Per example and label, three 0/1 values: answered rightly, answered, expected: (n, 3 · K), label by
    label."""
    import numpy as np

    rows = [
        [float(flag) for label in labels for flag in (label in t and label in a, label in a, label in t)]
        for t, a in zip(targets, answers, strict=True)
    ]
    return np.array(rows).reshape(len(rows), 3 * len(labels))


def _by_label(sums: Array) -> Array:
    """(m, 3 · K) → (m, K, 3)."""
    return sums.reshape(len(sums), -1, 3)


def set_micro_f1(sums: Array) -> Any:
    """F1 over all (example, label) pairs together; nan if no label is expected or answered."""
    import numpy as np

    right, answered, expected = _by_label(sums).sum(axis=1).T
    total = answered + expected
    return 2 * right / np.where(total > 0, total, np.nan)


def set_macro_f1(sums: Array) -> Any:
    """The mean over labels of their F1; 0 for a label that is neither expected nor answered."""
    import numpy as np

    right, answered, expected = np.moveaxis(_by_label(sums), 2, 0)
    total = answered + expected
    return np.divide(2 * right, total, out=np.zeros_like(right), where=total > 0).mean(axis=1)
