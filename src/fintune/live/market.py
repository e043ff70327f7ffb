"""Which move a piece of news could still forecast: sessions of New York's exchange, and daily closes.

As in training (see `data/raw/readers/stocknet.py`): what is known before the close of trading day d - 1, and
after the close before it, forecasts the change from the close of d - 1 to that of d. Trading days are those
that have a price.
"""

from __future__ import annotations

import bisect
import csv
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

from fintune.data.raw.sessions import close_of
from fintune.errors import DataError

_SETTLED = timedelta(minutes=30)
"""After a close, until the day's price is taken for its last."""
_LONGEST_GAP = timedelta(days=7)
"""Between news and the close that ends its session; beyond it prices are missing."""

Closes = Mapping[str, float]
"""Day (ISO 8601) → close adjusted for splits and dividends."""


class Prices(Protocol):
    """A source of daily closes."""

    def closes(self, symbol: str, first: date, last: date) -> Closes:
        """The closes of a symbol from one day to another, both included; {} for an unknown symbol.

        Raises:
            DataError: the source cannot be asked.
        """
        ...


class Move(NamedTuple):
    """A realised move."""

    base: str
    """The day d - 1."""
    day: str
    """The day d."""
    percent: float


class FolderPrices:
    """A folder of `SYMBOL.csv` files with the columns Date and Adj Close (or Close)."""

    def __init__(self, folder: str | Path) -> None:
        """Raises DataError: there is no such folder."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"--prices is {folder}, which is no folder: it must hold SYMBOL.csv files.")

    def closes(self, symbol: str, first: date, last: date) -> Closes:
        path = self.folder / f"{Path(symbol).name}.csv"
        if not path.is_file():
            return {}
        found = {}
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), start=2):
                try:
                    day = date.fromisoformat(row["Date"][:10])
                    price = float(row["Adj Close"] if "Adj Close" in row else row["Close"])
                except (KeyError, TypeError, ValueError):
                    raise DataError(
                        f"{path}:{number} has no date or price: its columns must be Date, and Adj Close "
                        "or Close."
                    ) from None
                if first <= day <= last and price > 0:
                    found[day.isoformat()] = price
        return found


def move_after(known: datetime, closes: Closes, now: datetime) -> Move | None:
    """The move that news known at a moment forecasts; None while it is not over or prices are missing.

    Args:
        known: when the answer was given, not when the news says it was published: only that is a forecast.
    """
    days = sorted(day for day in closes if close_of(day) + _SETTLED <= now)
    ends = [close_of(day) for day in days]
    base = bisect.bisect_right(ends, known)  # known at a close is known after it
    if base + 1 >= len(days) or ends[base] - known > _LONGEST_GAP:
        return None
    change = 100 * (closes[days[base + 1]] / closes[days[base]] - 1)
    return Move(days[base], days[base + 1], round(change, 4))
