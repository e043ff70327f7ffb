"""Parse a cell as a date or a time: ISO 8601, other notations, seconds since 1970.

`05/01/2026` may be January or May: the column's other values decide, or the recipe's `time_format`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from fintune.errors import DataError

DAY_FIRST, MONTH_FIRST, EPOCH = "day_first", "month_first", "epoch"
LOOKED_AT = 1_000
"""How many times are looked at to see whether a column needs a format."""
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?!\d)(.*)", re.DOTALL)
_NUMERIC = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})(?!\d)(.*)", re.DOTALL)
_EPOCH = re.compile(r"(\d{10}|\d{13}|\d{16}|\d{19})(\.\d*)?")
"""Ten digits of seconds, or thirteen of milliseconds, sixteen of microseconds, nineteen of nanoseconds."""
_ZONES = {
    name: timezone(timedelta(hours=hours))
    for name, hours in {"EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8}.items()
} | {"PDT": timezone(timedelta(hours=-7)), **dict.fromkeys(("UTC", "GMT", "Z"), UTC)}
"""The time zone names of RFC 2822."""


def moment(value: Any, form: str = "") -> str:
    """A cell as a date, or as date and time in UTC, in ISO 8601; without a time zone it counts as UTC.

    Args:
        form: `day_first`, `month_first`, `epoch`, a `strptime` format; "" is for unambiguous times.

    Raises:
        ValueError: it is neither, or ambiguous without a form.
    """
    if not isinstance(value, date):  # a datetime is a date too
        value = _parsed(_plain(value), form)
    if not isinstance(value, datetime):
        return str(value.isoformat())
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("it is not a time")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _parsed(text: str, form: str) -> date:
    if form == EPOCH or (not form and _EPOCH.fullmatch(text)):
        seconds = float(text)
        while 1e11 <= abs(seconds) < 1e20:  # milliseconds, microseconds, nanoseconds
            seconds /= 1000
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, OSError):
            raise ValueError("it is out of range") from None
    if "%" in form:
        found = datetime.strptime(text, form)
        return found if re.search("%[HIMSfcXTs]", form) else found.date()
    if text.isdigit() and len(text) != 8:
        raise ValueError("a number is not a date")
    if ordered := _YEAR_FIRST.fullmatch(text):
        year, _, month, day, rest = ordered.groups()
        text = f"{year}-{int(month):02}-{int(day):02}{rest}"
    elif ordered := _NUMERIC.fullmatch(text):
        return _in_order(ordered, text, form)
    try:
        return date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError:
        return _written(text, False)


def _in_order(match: re.Match[str], text: str, form: str) -> date:
    """`05/01/2026` by a form; without one, if it is unambiguous, or by convention for `05.01.2026`."""
    first, second = int(match[1]), int(match[3])
    form = form or _order(match) or (DAY_FIRST if match[2] == "." or first == second else "")
    if not form:
        raise ValueError("its day and month may be either way: set time_format")
    if (second if form == DAY_FIRST else first) > 12:
        raise ValueError(f"it is not {form.replace('_', ' ')}")
    return _written(text, form == DAY_FIRST)


def _order(match: re.Match[str]) -> str:
    """The order that a date's own numbers imply; "" if neither is greater than 12."""
    return DAY_FIRST if int(match[1]) > 12 else MONTH_FIRST if int(match[3]) > 12 else ""


def _written(text: str, day_first: bool) -> date:
    """A date in words (`5 Jan 2026`, `Mon, 05 Jan 2026 16:30 EST`), with day, month and year."""
    from dateutil import parser

    with warnings.catch_warnings():
        warnings.simplefilter("error", parser.UnknownTimezoneWarning)
        try:
            read = [
                parser.parse(text, dayfirst=day_first, tzinfos=_ZONES, default=default)
                for default in (datetime(2000, 1, 1, 1, 1), datetime(2001, 2, 2, 2, 2))
            ]
        except (ValueError, OverflowError, parser.UnknownTimezoneWarning) as error:
            raise ValueError(str(error)) from None
    if read[0].date() != read[1].date():
        raise ValueError("it lacks a day, a month or a year")
    return read[0] if read[0] == read[1] else read[0].date()


def form_of(values: Iterable[tuple[str, Any]], key: str) -> tuple[str, str]:
    """The form that a column's times need, and a line that says so; "" if they need none.

    Args:
        values: (location, value) pairs.
        key: the setting for the form, for error messages.

    Raises:
        DataError: the order of day and month is ambiguous, or differs between times.
    """
    found: dict[str, tuple[str, str]] = {}
    either = by_custom = epoch = ""
    for count, (where, value) in enumerate(values, start=1):
        text = str(value).strip()
        if not isinstance(value, date) and (match := _NUMERIC.fullmatch(text)):
            if order := _order(match):
                found.setdefault(order, (text, where))
            elif match[2] == ".":
                by_custom = by_custom or text
            elif match[1] != match[3]:
                either = either or f"{text} ({where})"
        elif not isinstance(value, bool) and _EPOCH.fullmatch(text):
            epoch = epoch or text
        if count >= LOOKED_AT and not (found or either or by_custom):
            break
    choices = f"set  {key}: {DAY_FIRST}  or  {key}: {MONTH_FIRST}"
    if len(found) > 1:
        (day, one), (month, other) = found[DAY_FIRST], found[MONTH_FIRST]
        raise DataError(
            f"The times have days and months both ways: {day} ({one}) and {month} ({other}). Correct "
            f"them; or {choices}, which drops the rows that do not fit."
        )
    if not found and by_custom:
        found[DAY_FIRST] = by_custom, ""
    if not found and either:
        raise DataError(f"The time {either} may have its day or its month first: {choices}.")
    for form, (text, _) in found.items():
        return form, f"times such as {text} are read with the {form.partition('_')[0]} first"
    return "", f"times such as {epoch} are read as seconds (or parts of them) since 1970" if epoch else ""
