"""Number metrics as functions of sums: R² and correlations. Shapes: n examples, m sets of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


def r2_terms(targets: Sequence[float], answers: Sequence[float]) -> Array:
    """(1, y, y², (y − ŷ)²) of each example, (n, 4), for `r2`.

    y is centred on the mean of all targets: this does not change R², but reduces rounding errors.
    """
    import numpy as np

    true, got = np.asarray(targets, float), np.asarray(answers, float)
    y = true - true.mean()
    return np.stack([np.ones_like(y), y, y * y, (true - got) ** 2], axis=1)


def r2(sums: Array) -> Any:
    """R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; nan if the targets are constant.

    ȳ is the mean of these targets, so a forecast of the training mean has R² slightly below 0.
    """
    import numpy as np

    n, y, y2, error2 = sums.T
    spread = y2 - y * y / n
    return 1 - error2 / np.where(spread > 1e-9 * y2, spread, np.nan)  # rounding may leave a 0 slightly above


def rank_terms(targets: Sequence[float], answers: Sequence[float]) -> Array:
    """(1, x, y, x², y², xy) of each example's ranks, (n, 6), for `correlation`; ties get their mean rank.

    The ranks are those in the whole sample, also for resamples.
    """
    import numpy as np
    from scipy.stats import rankdata

    x, y = rankdata(targets), rankdata(answers)
    x, y = x - x.mean(), y - y.mean()
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)


def correlation(sums: Array) -> Any:
    """Pearson's correlation (of ranks: Spearman's), −1 to 1; nan if either side is constant."""
    import numpy as np

    n, x, y, xx, yy, xy = sums.T
    spread = (xx - x * x / n) * (yy - y * y / n)
    return (xy - x * y / n) / np.sqrt(np.where(spread > 1e-9 * xx * yy, spread, np.nan))
