"""Which move an answer forecasts: nothing known after a close may be held against the move that it began."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.data.raw.readers.stocknet import close_of as stocknet_close
from fintune.data.raw.sessions import close_of
from fintune.errors import DataError
from fintune.live.market import FolderPrices, move_after

CLOSES = {"2026-03-02": 100.0, "2026-03-03": 110.0, "2026-03-04": 99.0, "2026-03-06": 99.0}
LATER = datetime(2026, 3, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("known", "base", "day", "percent"),
    [
        ("2026-03-02T20:59:59+00:00", "2026-03-02", "2026-03-03", 10.0),  # a second before 16:00 in New York
        ("2026-03-02T21:00:00+00:00", "2026-03-03", "2026-03-04", -10.0),
        ("2026-03-03T02:00:00+00:00", "2026-03-03", "2026-03-04", -10.0),
        ("2026-03-04T15:00:00+00:00", "2026-03-04", "2026-03-06", 0.0),  # no trading on the 5th
    ],
)
def test_a_move_begins_with_the_close_after_the_answer(known, base, day, percent):
    assert move_after(datetime.fromisoformat(known), CLOSES, LATER) == (base, day, percent)


def test_a_move_is_not_known_before_its_close_is_settled():
    known = datetime(2026, 3, 2, 15, tzinfo=UTC)
    close = close_of("2026-03-03")
    assert move_after(known, CLOSES, close) is None  # the day's price may still change
    assert move_after(known, CLOSES, close + timedelta(minutes=30)) is not None


def test_an_answer_without_a_price_within_a_week_has_no_move():
    assert move_after(datetime(2026, 2, 1, tzinfo=UTC), CLOSES, LATER) is None
    assert move_after(datetime(2026, 3, 6, 15, tzinfo=UTC), CLOSES, LATER) is None
    assert move_after(datetime(2026, 3, 2, tzinfo=UTC), {}, LATER) is None


@given(
    st.datetimes(datetime(2026, 3, 2), datetime(2026, 3, 5), timezones=st.just(UTC)),
    st.dictionaries(st.dates(datetime(2026, 2, 25).date(), datetime(2026, 3, 9).date()), st.floats(1, 9)),
)
def test_both_closes_of_a_move_come_after_the_answer(known, closes):
    move = move_after(known, {day.isoformat(): price for day, price in closes.items()}, LATER)
    if move:
        assert known < close_of(move.base) < close_of(move.day) <= LATER


@given(st.dates(datetime(2014, 1, 1).date(), datetime(2015, 12, 31).date()))
def test_closes_are_those_of_the_training_data(day):
    if day.weekday() < 5:
        halves = {"2014-07-03", "2014-11-28", "2014-12-24", "2015-11-27", "2015-12-24"}  # as the exchange had
        local = close_of(day.isoformat()).astimezone(ZoneInfo("America/New_York"))
        assert local.date() == day and local.hour == (13 if day.isoformat() in halves else 16)
        assert close_of(day.isoformat()) == datetime.fromisoformat(stocknet_close(day.isoformat()))


def test_half_days_close_at_one():
    halves = ["2023-07-03", "2024-11-29", "2025-12-24"]
    assert [close_of(day).astimezone(UTC).hour for day in halves] == [17, 18, 18]


def test_prices_of_a_folder_are_read_by_day_and_a_bad_row_is_named(tmp_path):
    (tmp_path / "ACM.csv").write_text("Date,Open,Adj Close,Close\n2026-03-02,1,10.5,11\n2026-03-03,1,11,12\n")
    prices = FolderPrices(tmp_path)
    first, last = datetime(2026, 3, 2).date(), datetime(2026, 3, 2).date()
    assert prices.closes("ACM", first, last) == {"2026-03-02": 10.5}
    assert prices.closes("../ACM", first, last) == {"2026-03-02": 10.5}  # never outside the folder
    assert prices.closes("NONE", first, last) == {}
    (tmp_path / "BAD.csv").write_text("Date,Close\n2026-03-02,ten\n")
    with pytest.raises(DataError, match=r"BAD\.csv:2"):
        prices.closes("BAD", first, last)
    with pytest.raises(DataError, match="not a folder"):
        FolderPrices(tmp_path / "absent")


def test_prices_as_yfinance_writes_them_are_read_and_rows_without_one_are_counted(tmp_path):
    (tmp_path / "ACM.csv").write_text(
        "Price,Close,Close,Open\nTicker,BLT,ACM,ACM\nDate,,,\n2026-03-02,7,10.5,1\n2026-03-03,7,,1\n,,,\n"
        "2026-03-04,7,nan,\n2026-03-05 00:00:00-05:00,7,11,1\n"
    )
    (tmp_path / "BLT.csv").write_text("Ticker,BLT,BLT\nPrice,Open,Close\nDate,,\n2026-03-02,1,7\n")
    prices = FolderPrices(tmp_path)
    first, last = datetime(2026, 3, 1).date(), datetime(2026, 3, 9).date()
    assert prices.closes("ACM", first, last) == {"2026-03-02": 10.5, "2026-03-05": 11.0}
    assert prices.closes("BLT", first, last) == {"2026-03-02": 7.0}
    assert prices.left_out == {"rows of ACM.csv without a price": 2}
    (tmp_path / "OTHER.csv").write_text("Price,Close,Close\nTicker,BLT,ACM\nDate,,\n2026-03-02,7,8\n")
    with pytest.raises(DataError, match="no price of OTHER"):
        prices.closes("OTHER", first, last)
