"""Finds the price move that a piece of news could forecast: NYSE sessions and daily closes.

As in training (see `data/raw/readers/stocknet.py`): news known before the close of trading day d - 1, and
after the previous close, forecasts the change from the close of d - 1 to that of d. Trading days are days
with a price.
"""

from __future__ import annotations

import bisect
import csv
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fintune.data.raw.sessions import close_of
from fintune.errors import DataError

_SETTLED = timedelta(minutes=30)
"""How long after a close the day's price is considered final."""
_LONGEST_GAP = timedelta(days=7)
"""The longest gap between news and the close of its session; longer gaps mean missing prices."""

Closes = Mapping[str, float]
"""Day (ISO 8601) → close adjusted for splits and dividends."""


class Prices(Protocol):
    """A source of daily closes."""

    def closes(self, symbol: str, first: date, last: date) -> Closes:
        """A symbol's closes from one day to another, both included; {} for an unknown symbol.

        Raises:
            DataError: the source does not respond.
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
    """A folder of `SYMBOL.csv` files with the columns Date and Adj Close (or Close), or in yfinance's form
    with a line `Price` and a line `Ticker` on top."""

    def __init__(self, folder: str | Path) -> None:
        """Raises DataError: there is no such folder."""
        self.folder = Path(folder)
        self.left_out: dict[str, int] = {}
        """Why rows were skipped, with the file → how many."""
        if not self.folder.is_dir():
            raise DataError(f"--prices is {folder}, which is not a folder: it must hold SYMBOL.csv files.")

    def closes(self, symbol: str, first: date, last: date) -> Closes:
        path = self.folder / f"{Path(symbol).name}.csv"
        if not path.is_file():
            return {}
        found, empty = {}, 0
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream)
            day_at, price_at = _price_columns(rows, path.stem, path)
            for row in rows:
                number = rows.line_num
                price = row[price_at].strip().casefold() if len(row) > price_at else ""
                if price in _NO_PRICE:
                    empty += any(cell.strip() for cell in row)
                    continue
                try:
                    day, value = date.fromisoformat(row[day_at][:10]), float(price)
                except (IndexError, ValueError):
                    raise DataError(
                        f"{path}:{number} has no date or price: write its date like 2026-03-02, and its "
                        "price as a number or empty."
                    ) from None
                if first <= day <= last and value > 0:
                    found[day.isoformat()] = value
        if empty:
            self.left_out[f"rows of {path.name} without a price"] = empty
        return found


_NO_PRICE = ("", "nan", "null", "none", "n/a", "-")


def _price_columns(rows: Any, symbol: str, path: Path) -> tuple[int, int]:
    """The column indices of date and close; reads the header lines.

    Raises:
        DataError: there are none, or the closes of several tickers do not include the symbol.
    """
    header: list[str] = next(rows, [])
    dates = header
    names = [[name] for name in header]
    if header[:1] in (["Price"], ["Ticker"]):  # yfinance's two header levels, then a line naming the date
        names = [list(pair) for pair in zip(header, next(rows, []), strict=False)]
        dates = next(rows, [])
    prices = {
        wanted: [at for at, name in enumerate(names) if wanted in name] for wanted in ("Adj Close", "Close")
    }
    found = prices["Adj Close"] or prices["Close"]
    if len(found) > 1:
        found = [at for at in found if symbol.casefold() in (part.casefold() for part in names[at])]
    if "Date" not in dates or not found:
        raise DataError(
            f"{path} has no date or no price of {symbol}: its columns must be Date, and Adj Close or Close."
        )
    return dates.index("Date"), found[0]


def move_after(known: datetime, closes: Closes, now: datetime) -> Move | None:
    """The move that news known at a moment forecasts; None before it is over, or if prices are missing.

    Args:
        known: the time of the answer, not of publication: only then is it a forecast.
    """
    days = sorted(day for day in closes if close_of(day) + _SETTLED <= now)
    ends = [close_of(day) for day in days]
    base = bisect.bisect_right(ends, known)  # news at the time of a close counts as after it
    if base + 1 >= len(days) or ends[base] - known > _LONGEST_GAP:
        return None
    change = 100 * (closes[days[base + 1]] / closes[days[base]] - 1)
    return Move(days[base], days[base + 1], round(change, 4))
