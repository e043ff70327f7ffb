"""Implements `fintune live score`: compares live answers with the price moves that followed.

Each answer that names one stock is paired with the move from the close that ends its session to the next
close. Only prices after the moment of the answer count, so nothing can be known beforehand; news older than a
day when it was answered is left out. The metrics are the evaluation's, with intervals by trading day.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from fintune.errors import DataError
from fintune.evaluation.scores import Scored
from fintune.files import write_json
from fintune.live.items import utc
from fintune.live.market import Closes, Prices, move_after
from fintune.live.store import Row, Store, days_ago, write_table
from fintune.metrics.measure import mean
from fintune.tasks.base import INTERVAL, Prediction, Record
from fintune.tasks.types import RegressionTask

SCORECARD_FORMAT = 1
TASK = "regression"
FEW_DAYS = 30
"""With fewer trading days the intervals mean little, and the scorecard says so."""
_FIGURES = {"hit_rate": "directional_accuracy", "mse": "mse", "interval_coverage": "interval_coverage"}
"""The scorecard's name of a figure → the metric."""


def score(folder: str | Path, prices: Prices, *, now: datetime | None = None) -> dict[str, Any]:
    """Join realised moves with the answers of a live run's folder, and write both scorecard and moves there.

    Moves that are stored already are not computed again.

    Raises:
        DataError: the task has no answers, or prices are not available.
    """
    now = now or datetime.now(UTC)
    store = Store(folder)
    given = [row for row in store.rows() if row["task"] == TASK and row["value"] is not None]
    if not given:
        raise DataError(
            f"{store.folder} holds no answers of the task {TASK}: run  fintune live --tasks {TASK},…  first."
        )
    left_out: Counter[str] = Counter()
    reasons = [_unusable(row) for row in given]
    left_out.update(reason for reason in reasons if reason)
    usable = [row for row, reason in zip(given, reasons, strict=True) if not reason]
    moves = {(row["id"], row["symbol"]): row for row in store.realised()}
    missing = [row for row in usable if (row["id"], row["symbols"]) not in moves]
    symbol_of = itemgetter("symbols")
    for symbol, group in groupby(sorted(missing, key=symbol_of), symbol_of):
        rows = list(group)
        closes = _closes(prices, symbol, rows, now)
        for row in rows:
            if move := move_after(datetime.fromisoformat(row["seen"]), closes, now):
                moves[row["id"], symbol] = {"id": row["id"], "symbol": symbol, **move._asdict()}
            else:
                left_out["the move is not over, or has no price"] += 1
    left_out.update(getattr(prices, "left_out", {}))
    if moves:
        write_table(store.folder / "realised.parquet", list(moves.values()))
    joined = [(row, moves[key]) for row in usable if (key := (row["id"], row["symbols"])) in moves]
    card = _card(joined) | {
        "format": SCORECARD_FORMAT,
        "task": TASK,
        "made": utc(now),
        "answers": len(given),
        "left_out": dict(left_out),
    }
    write_json(store.folder / "scorecard.json", card)
    return card


def _unusable(row: Row) -> str:
    """Why the scorecard skips an answer, or ""."""
    symbols = row["symbols"].split()
    if len(symbols) != 1:
        return "several stocks are named" if symbols else "no stock is named"
    if row["published"] and row["published"] < days_ago(datetime.fromisoformat(row["seen"]), 1):
        return "the news was older than a day"
    return ""


def _closes(prices: Prices, symbol: str, rows: list[Row], now: datetime) -> Closes:
    days = [date.fromisoformat(row["seen"][:10]) for row in rows]
    last = min(max(days) + timedelta(days=14), now.date())
    return prices.closes(symbol, min(days) - timedelta(days=1), last)


def _card(joined: list[tuple[Row, dict[str, Any]]]) -> dict[str, Any]:
    """The figures: each with its value, 95 % interval and number of answers."""
    days = {move["day"] for _, move in joined}
    card: dict[str, Any] = {"n": len(joined), "trading_days": len(days), "interval_level": INTERVAL}
    if not joined:
        return card | {"figures": {}}
    judge = RegressionTask(TASK, "", unit="%")
    records = [Record(text="-", target=move["percent"], time=move["day"]) for _, move in joined]
    scored = Scored.of(judge, records, [_answer(row) for row, _ in joined])
    intervals = scored.intervals() if len(days) > 1 else {}
    figures = {}
    for name, metric in _FIGURES.items():
        known = [value for value in scored.tables[metric][:, 0].tolist() if value == value]
        if known:
            bounds = intervals.get(metric)
            figures[name] = {"value": mean(known), "interval": bounds and list(bounds), "n": len(known)}
    truth = [move["percent"] for _, move in joined]
    ups = mean([float(y > 0) for y in truth if y])
    card["baselines"] = {
        "mse_of_no_move": mean([y * y for y in truth]),
        "share_of_rises": None if math.isnan(ups) else ups,
    }
    return card | {"figures": figures}


def _answer(row: Row) -> Prediction:
    """A stored answer, with the interval given at the time."""
    bounds = None if row["low"] is None else (float(row["low"]), float(row["high"]))
    return Prediction(float(row["value"]), interval=bounds)


def show(card: dict[str, Any]) -> None:
    """Print a scorecard."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{card['task']}, live: {card['n']} of {card['answers']} answers over {card['trading_days']} days"
    table = Table(title=title)
    for column in ("figure", "value", "95 % interval", "n", "beside it"):
        table.add_column(column)
    baselines = card.get("baselines", {})
    beside = {
        "hit_rate": ("rises", baselines.get("share_of_rises")),
        "mse": ("of «no move»", baselines.get("mse_of_no_move")),
        "interval_coverage": ("meant", card["interval_level"]),
    }
    for name, figure in card["figures"].items():
        bounds = figure["interval"]
        label, other = beside[name]
        table.add_row(
            name.replace("_", " "),
            f"{figure['value']:.4g}",
            f"{bounds[0]:.4g} to {bounds[1]:.4g}" if bounds else "one day only",
            str(figure["n"]),
            f"{label} {other:.4g}" if other is not None else "",
        )
    console.print(table)
    for why, count in card["left_out"].items():
        console.print(f"{count} left out: {why}", highlight=False)
    if card["trading_days"] < FEW_DAYS:
        console.print(f"Fewer than {FEW_DAYS} trading days: these figures say little yet.", highlight=False)
