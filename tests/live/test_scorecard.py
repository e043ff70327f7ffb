"""The live scorecard: answers joined with what prices did afterwards, and figures with their intervals."""

import json
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from fintune.cli import main
from fintune.data.raw.sessions import close_of
from fintune.errors import DataError
from fintune.live import page
from fintune.live.scorecard import score
from fintune.live.store import Store

FIRST = date(2026, 3, 2)
DAYS = [day.isoformat() for i in range(80) if (day := FIRST + timedelta(days=i)).weekday() < 5]
NOW = datetime(2026, 6, 10, tzinfo=UTC)


class Known:
    """Prices of our own, and what was asked for."""

    def __init__(self, **closes):
        self.all, self.asked = closes, []

    def closes(self, symbol, first, last):
        self.asked.append(symbol)
        return {
            d: p for d, p in self.all.get(symbol, {}).items() if first.isoformat() <= d <= last.isoformat()
        }


def answer(day, value, symbol="ACM", **changes):
    """A forecast given an hour before a day's close."""
    seen = (close_of(day) - timedelta(hours=1)).isoformat(timespec="seconds")
    row = dict.fromkeys("summary link prediction confidence probabilities error".split())
    row |= {"id": f"{symbol}-{day}-{value}", "seen": seen, "published": seen, "source": "Wire"}
    row |= {"symbols": symbol, "title": "News", "task": "regression", "alert": ""}
    return row | {"value": value, "low": value - 1.0, "high": value + 1.0} | changes


def stored(folder, rows):
    with Store(folder) as store:
        store.write(rows)
    return folder


def moves(rng, count):
    return np.round(rng.normal(0, 2, count), 4)


def prices(changes):
    """Closes that change by so many percent from each day to the next."""
    closes = 100 * np.cumprod([1, *(1 + np.array(changes) / 100)])
    return dict(zip(DAYS, closes.tolist(), strict=False))


def test_figures_are_those_of_the_moves_after_the_answers(tmp_path):
    changes = moves(np.random.default_rng(1), 41)
    forecasts = np.round(changes[:40] * 0.5 + np.random.default_rng(2).normal(0, 1, 40), 2)
    folder = stored(tmp_path, [answer(d, float(f)) for d, f in zip(DAYS[:40], forecasts, strict=True)])
    card = score(folder, Known(ACM=prices(changes)), now=NOW)
    truth = changes[:40]
    figures = card["figures"]
    assert (card["n"], card["trading_days"]) == (40, 40)
    assert figures["mse"]["value"] == pytest.approx(np.mean((forecasts - truth) ** 2), rel=1e-3)
    assert figures["hit_rate"]["value"] == pytest.approx(np.mean(forecasts * truth > 0))
    assert figures["interval_coverage"]["value"] == pytest.approx(
        np.mean(abs(forecasts - truth) <= 1), abs=0.026
    )
    assert card["baselines"]["mse_of_no_move"] == pytest.approx(np.mean(truth**2), rel=1e-3)
    for figure in figures.values():
        low, high = figure["interval"]
        assert low < figure["value"] < high
    assert page.scorecard(folder) == card


def test_many_answers_of_one_day_do_not_narrow_the_interval(tmp_path):
    changes = moves(np.random.default_rng(3), 11)
    once = [answer(day, 0.5) for day in DAYS[:10]]
    often = [answer(day, 0.5, id=f"{day}-{i}") for day in DAYS[:10] for i in range(20)]
    cards = [
        score(stored(tmp_path / name, rows), Known(ACM=prices(changes)), now=NOW)
        for name, rows in (("once", once), ("often", often))
    ]
    assert [card["n"] for card in cards] == [10, 200]
    narrow, wide = (np.diff(card["figures"]["mse"]["interval"]) for card in cards)
    assert wide == pytest.approx(narrow, rel=1e-6)


def test_what_cannot_be_judged_is_counted_and_what_is_not_over_comes_later(tmp_path):
    rows = [
        answer(DAYS[0], 1.0),
        answer(DAYS[1], 1.0, symbols=""),
        answer(DAYS[1], 1.0, id="two", symbols="ACM BLT"),
        answer(DAYS[1], 1.0, id="old", published="2026-01-01T00:00:00+00:00"),
        answer(DAYS[3], 1.0),
    ]
    known = Known(ACM=prices([1.0] * 10))
    early = score(stored(tmp_path, rows), known, now=close_of(DAYS[2]))
    assert early["n"] == 1
    assert early["left_out"] == {
        "no stock is named": 1,
        "several stocks are named": 1,
        "the news was older than a day": 1,
        "the move is not over, or has no price": 1,
    }
    assert early["figures"]["hit_rate"]["interval"] is None  # of one day there is none
    assert score(tmp_path, known, now=NOW)["n"] == 2


def test_moves_once_joined_are_not_asked_for_again(tmp_path):
    folder = stored(tmp_path, [answer(day, 1.0) for day in DAYS[:3]])
    known = Known(ACM=prices([1.0] * 10))
    first = score(folder, known, now=NOW)
    second = score(folder, known, now=NOW)
    assert known.asked == ["ACM"]
    assert second["figures"] == first["figures"]


def test_a_forecast_of_pure_chance_is_not_told_from_chance(tmp_path):
    """The hit rate's 95 % interval holds one half about as often as it says, over 12 live runs."""
    inside = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        changes, coins = moves(rng, 51), rng.choice([-1.0, 1.0], 50)
        rows = [answer(day, float(c)) for day, c in zip(DAYS[:50], coins, strict=True)]
        card = score(stored(tmp_path / str(seed), rows), Known(ACM=prices(changes)), now=NOW)
        low, high = card["figures"]["hit_rate"]["interval"]
        inside += low <= 0.5 <= high
    assert inside >= 9


def test_the_command_scores_a_folder_with_prices_of_files(tmp_path, capsys):
    stored(tmp_path / "out", [answer(day, 1.0) for day in DAYS[:3]])
    (tmp_path / "prices").mkdir()
    lines = [f"{day},{price}" for day, price in prices([1.0] * 10).items()]
    (tmp_path / "prices" / "ACM.csv").write_text("\n".join(["Date,Close", *lines]))
    past = ["live", "score", "--output", str(tmp_path / "out"), "--prices", str(tmp_path / "prices")]
    assert main(past) == 0
    shown = capsys.readouterr().out
    assert "regression, live: 3 of 3 answers over 3 days" in shown
    assert "hit rate" in shown and "say little yet" in shown
    assert main([*past, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["hit_rate"]["n"] == 3
    assert main(["live", "score", "--output", str(tmp_path / "none"), "--prices", str(tmp_path)]) == 2
    assert "holds no answers of the task regression" in capsys.readouterr().err


def test_a_folder_without_forecasts_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="fintune live --tasks regression"):
        score(tmp_path, Known())
