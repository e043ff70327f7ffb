"""Cells as dates and times, however they are written."""

from datetime import UTC, date, datetime

import pytest

from fintune.data.raw.readers.times import form_of, moment
from fintune.errors import DataError

NOON = "2026-01-05T12:00:00+00:00"


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        ("2026-01-05", "", "2026-01-05"),
        ("20260105", "", "2026-01-05"),
        ("2026/1/5", "", "2026-01-05"),
        ("2026-01-05T07:00:00-05:00", "", NOON),
        ("05/01/2026", "day_first", "2026-01-05"),
        ("1/5/26 12:00", "month_first", NOON),
        ("13/01/2026", "", "2026-01-13"),
        ("05.01.2026", "", "2026-01-05"),
        ("2026/01/05", "day_first", "2026-01-05"),
        ("5 Jan 2026", "", "2026-01-05"),
        ("January 5, 2026 12:00 PM", "", NOON),
        ("Mon, 05 Jan 2026 07:00:00 EST", "", NOON),
        ("1767614400", "", NOON),
        (1767614400, "", NOON),
        (1767614400.0, "", NOON),
        ("1767614400000", "", NOON),
        ("1767614400000000000", "", NOON),
        ("86400", "epoch", "1970-01-02T00:00:00+00:00"),
        ("05012026", "%d%m%Y", "2026-01-05"),
        ("05.01.26 12h", "%d.%m.%y %Hh", NOON),
        (date(2026, 1, 5), "", "2026-01-05"),
        (datetime(2026, 1, 5, 12, tzinfo=UTC), "month_first", NOON),
    ],
)
def test_a_time_is_read_as_people_and_machines_write_it(value, form, expected):
    assert moment(value, form) == expected


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("05/01/2026", ""),
        ("13/01/2026", "month_first"),
        ("01/13/2026", "day_first"),
        ("2026", ""),
        ("17676144", "month_first"),
        ("176761440", ""),
        ("Jan 2026", ""),
        ("12:30", ""),
        ("5 Jan 2026 12:00 XYZ", ""),
        ("soon", ""),
        (True, ""),
        ("1e400", "epoch"),
        ("inf", "epoch"),
        ("99999999999999999999", "epoch"),
    ],
)
def test_what_is_no_time_or_may_be_another_is_refused(value, form):
    with pytest.raises(ValueError):
        moment(value, form)


def named(*values):
    return [(f"f.csv:{line}", value) for line, value in enumerate(values, start=2)]


def test_a_column_decides_by_its_plain_values_or_asks():
    assert form_of(named("01/02/2026", "03/03/2026", "28/02/2026"), "k")[0] == "day_first"
    assert form_of(named("01/02/2026", "2/28/2026"), "k")[0] == "month_first"
    assert form_of(named("01.02.2026"), "k")[0] == "day_first"
    assert form_of(named("2026-01-02", ""), "k") == ("", "")
    assert "times such as 1767614400 are read as seconds" in form_of(named("1767614400"), "k")[1]
    with pytest.raises(
        DataError, match=r"01/02/2026 \(f\.csv:2\) may have .* set  k: day_first  or  k: month"
    ):
        form_of(named("01/02/2026"), "k")
    with pytest.raises(DataError, match=r"both ways: 28/02/2026 \(f\.csv:3\) and 02/28/2026 \(f\.csv:2\)"):
        form_of(named("02/28/2026", "28/02/2026"), "k")


def test_a_column_of_plain_times_is_not_read_to_its_end():
    assert form_of(iter([*named(*["2026-01-02"] * 1000), None]), "k") == ("", "")
