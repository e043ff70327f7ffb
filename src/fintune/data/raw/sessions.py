"""When New York's exchange closes, which separates what is known before from what is known after."""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

_NEW_YORK = ZoneInfo("America/New_York")


@functools.cache
def close_of(day: str) -> datetime:
    """When the exchange closes on a trading day (ISO 8601), in UTC: 16:00 local time, on half days 13:00.

    Half days by NYSE's rule: the day after Thanksgiving, Christmas Eve, and July 3 if July 4 is a weekday.
    """
    on = date.fromisoformat(day)
    first = date(on.year, 11, 1)
    thanksgiving = first + timedelta(days=(3 - first.weekday()) % 7 + 21)
    half = (
        on == thanksgiving + timedelta(days=1)
        or (on.month, on.day) == (12, 24)
        or ((on.month, on.day) == (7, 3) and date(on.year, 7, 4).weekday() < 5)
    )
    return datetime.combine(on, time(13 if half else 16), _NEW_YORK).astimezone(UTC)
