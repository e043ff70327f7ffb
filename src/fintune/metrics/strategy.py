"""What trading on forecasts of daily moves would have earned after costs: an illustration, not advice.

Knows only dates and numbers. Prices are closes without slippage, borrowing fees or size limits, so the curve
is too optimistic; it shows how little a small R² is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LABEL = "illustration, not advice"
COST_BPS = 10.0
"""Paid on each purchase and each sale, in basis points (hundredths of a percent)."""
_SHARE = 3


def strategy(
    dates: Sequence[str],
    moves: Sequence[float],
    forecasts: Sequence[float],
    cost_bps: float = COST_BPS,
) -> dict[str, Any]:
    """Each day, go long the third of the stocks with the highest forecasts and short the lowest third.

    Half of the capital is on each side, with equal weights, opened at one close and closed at the next, so a
    day costs twice `cost_bps` of the capital. Days with fewer than three stocks, or with equal forecasts at
    both ends, earn and cost nothing. Returns {} if no day can be traded.

    Returns:
        `label`, `cost_bps`, `days` (traded), `dates`, and `gross` and `net`: the sums of the days' returns up
        to each date, in percent of the capital; `mean_net` per day, with `mean_net_interval` (95 %, bootstrap
        over days).

    Args:
        dates: the day of each forecast; "" is skipped.
        moves: the actual moves, in percent.
    """
    import numpy as np

    by_day: dict[str, list[int]] = {}
    for i, day in enumerate(dates):
        if day:
            by_day.setdefault(day, []).append(i)
    gross, traded = [], []
    for day in sorted(by_day):
        order = sorted(by_day[day], key=lambda i: forecasts[i])
        side = len(order) // _SHARE
        trade = bool(side) and forecasts[order[0]] < forecasts[order[-1]]
        low, high = (order[:side], order[-side:]) if trade else ([], [])
        spread = (sum(moves[i] for i in high) - sum(moves[i] for i in low)) / side if trade else 0.0
        gross.append(spread / 2)
        traded.append(trade)
    if not any(traded):
        return {}
    earned = np.array(gross)
    net = earned - 2 * cost_bps / 100 * np.array(traded)
    own = net[np.array(traded)]
    draws = np.random.default_rng(0).integers(0, len(own), size=(1000, len(own)))
    return {
        "label": LABEL,
        "cost_bps": cost_bps,
        "days": len(own),
        "dates": sorted(by_day),
        "gross": earned.cumsum().round(6).tolist(),
        "net": net.cumsum().round(6).tolist(),
        "mean_net": float(own.mean()),
        "mean_net_interval": np.percentile(own[draws].mean(axis=1), [2.5, 97.5]).tolist(),
    }
