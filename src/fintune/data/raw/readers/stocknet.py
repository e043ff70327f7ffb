"""StockNet (Xu and Cohen, ACL 2018): a stock's tweets and the change of its adjusted close, in percent.

A session of a stock runs from one close to the next: [16:00 in New York of one trading day, 16:00 of the
next), or 13:00 on the exchange's half days; tweets after Friday's close belong to Monday's session.
There are two views of a move from the close of day d - 1 to that of day d:

- forecast: the tweets of the session that ends with d - 1's close, so all are known before the move begins;
- nowcast: the tweets of the session in which the price moves. They explain a move, but do not predict it.

The paper uses calendar days, including those without trading, before d, so it reads tweets sent after the
close at which the move begins; these views do not. Splits go by the day d: train before 2015-08-01,
validation before 2015-10-01, test before 2016-01-01. A record's `time` is the end of its session.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import re
from collections.abc import Generator, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from fintune.data.raw import sessions
from fintune.data.raw.readers.archives import members
from fintune.data.records import Dropped, Split
from fintune.tasks.base import Record

MAX_WORDS = 120
"""The most words of tweets in one record."""
DOWN, UP = -0.5, 0.55
"""Moves in percent: down is below the first, up is from the second on, as in the paper's code."""
_FIRST_DAY = "2014-01-01"
_ENDS: tuple[tuple[Split, str], ...] = (
    ("train", "2015-08-01"),
    ("validation", "2015-10-01"),
    ("test", "2016-01-01"),
)
_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: f"{month:02}" for month, name in enumerate(_NAMES, start=1)}
_FILE = r"(?:tweet/preprocessed/(?P<stock>[^/]+)/(?P<day>\d{4}-\d\d-\d\d)|price/raw/(?P<priced>[^/]+)\.csv)"

Tweet = tuple[str, str]
"""When it was sent (UTC, ISO 8601, sortable), and its text."""


def stocknet(path: Path, max_words: int = MAX_WORDS) -> Iterator[Record | Dropped]:
    """The forecast: a record per stock and trading day with tweets in the session before it."""
    return _read(path, "forecast", "stocknet", max_words)


def stocknet_nowcast(path: Path, max_words: int = MAX_WORDS) -> Iterator[Record | Dropped]:
    """The nowcast: the tweets of the session in which the price moves."""
    return _read(path, "nowcast", "stocknet_nowcast", max_words)


def stocknet_movement(path: Path) -> Iterator[Record | Dropped]:
    """The forecast as a label, `up` or `down`; moves between the paper's thresholds are dropped, counted."""
    small = 0
    for item in _read(path, "forecast", "stocknet_movement"):
        if isinstance(item, Record):
            change = float(item.target or 0)
            if DOWN <= change < UP:
                small += 1
                continue
            item = replace(item, target="up" if change >= UP else "down")
        yield item
    if small:
        yield Dropped(f"moves from {DOWN} % to {UP} %, neither up nor down", path.name, count=small)


def close_of(day: str) -> str:
    """When New York's exchange closes on a day, in UTC: `2015-07-31T20:00:00+00:00`."""
    return sessions.close_of(day).isoformat()


def _read(path: Path, view: str, source: str, max_words: int = MAX_WORDS) -> Iterator[Record | Dropped]:
    tweets: dict[str, list[Tweet]] = {}
    prices: dict[str, dict[str, float]] = {}
    for match, text in members(path, _FILE):
        name = match.string.partition("/")[2] if match.string.startswith("./") else match.string
        if match["priced"]:
            prices[match["priced"]] = yield from _prices(text, f"{path.name}:{name}")
        else:
            sent = yield from _tweets(text, f"{path.name}:{name}")
            tweets.setdefault(match["stock"], []).extend(sent)
    counts: dict[str, int] = {}
    for stock in sorted(prices):
        records = _records(stock, prices[stock], tweets.pop(stock, []), max_words, view == "nowcast", counts)
        for record in records:
            yield replace(record, id=f"{path.name}:{record.id}", source=source, kind=view)
    unpriced = sum(map(len, tweets.values()))
    if unpriced:
        counts["tweets of stocks without prices"] = unpriced
    for reason, count in counts.items():
        yield Dropped(reason, path.name, count=count)


def _prices(text: str, where: str) -> Generator[Dropped, None, dict[str, float]]:
    """Day → adjusted close from a price file; yields the rows that cannot be read."""
    prices: dict[str, float] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        try:
            prices[row["Date"]] = float(row["Adj Close"])
        except (KeyError, TypeError, ValueError):
            yield Dropped("malformed rows", f"{where}:{number}", "it has no date or adjusted close")
    return prices


def _tweets(text: str, where: str) -> Generator[Dropped, None, list[Tweet]]:
    """The tweets of a file; yields the lines that cannot be read.

    A file is named after a day, but also holds tweets of the evening before: only `created_at` counts.
    """
    tweets: list[Tweet] = []
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            row = json.loads(line)
            tweets.append((_sent(row["created_at"]), _sentence(row["text"])))
        except (ValueError, KeyError, TypeError):
            yield Dropped("malformed rows", f"{where}:{number}", "it is not a tweet with a text and a time")
    return tweets


def _sent(created_at: str) -> str:
    """`Fri Jul 31 10:00:00 +0000 2015` as ISO 8601 in UTC; strptime would take a quarter of all time."""
    _, month, day, clock, zone, year = created_at.split()
    moment = datetime.fromisoformat(f"{year}-{_MONTHS[month]}-{day}T{clock}{zone}")
    return moment.astimezone(UTC).isoformat()


def _records(
    stock: str,
    prices: dict[str, float],
    tweets: list[Tweet],
    max_words: int,
    nowcast: bool,
    counts: dict[str, int],
) -> Iterator[Record]:
    """A stock's records in order of time; adds dropped tweets and days to `counts`."""

    def count(reason: str, number: int) -> None:
        if number:
            counts[reason] = counts.get(reason, 0) + number

    # Only days up to the last split's end matter; a session is numbered by the day whose close ends it.
    first = (date.fromisoformat(_FIRST_DAY) - timedelta(days=14)).isoformat()
    days = sorted(day for day in prices if first <= day < _ENDS[-1][1])
    closes = [close_of(day) for day in days]
    moves = [i for i in range(1, len(days)) if days[i - 1] >= _FIRST_DAY]
    sessions: dict[int, list[Tweet]] = {i if nowcast else i - 1: [] for i in moves}
    outside = 0
    for tweet in tweets:
        session = bisect.bisect_right(closes, tweet[0])  # a tweet sent at a close counts as after it
        if session in sessions and (session or tweet[0] >= _day_before(closes[0])):
            sessions[session].append(tweet)
        else:
            outside += 1
    count("tweets outside the sessions that are used", outside)

    seen: set[str] = set()
    for move in moves:
        session = move if nowcast else move - 1
        sent = sorted(sessions[session])
        if not sent:
            count("stock-days without tweets", 1)
            continue
        fresh = []
        for tweet in sent:
            key = " ".join(re.findall(r"\w+", tweet[1].casefold()))
            if key and key not in seen:
                seen.add(key)
                fresh.append(tweet)
        count("tweets that repeat an earlier one on the stock", len(sent) - len(fresh))
        if not fresh:
            count("stock-days with repeated tweets only", 1)
            continue
        text = "\n".join(f"- {tweet}" for tweet in _most_informative(fresh, max_words))
        yield Record(
            text=f"Tweets on ${stock}:\n{text}",
            target=round(100 * (prices[days[move]] / prices[days[move - 1]] - 1), 4),
            split=next(split for split, end in _ENDS if days[move] < end),
            time=closes[session],
            id=f"{stock}/{days[move]}",
        )


def _day_before(moment: str) -> str:
    return (datetime.fromisoformat(moment) - timedelta(days=1)).isoformat()


def _most_informative(tweets: list[Tweet], max_words: int) -> list[str]:
    """The most informative tweets, best first, as many as fit in `max_words`; at least one, cut to fit.

    A tweet's score is its number of different words of three or more letters, minus two for each stock it
    names beyond the first (lists of stocks are mostly advertising); ties go to the later tweet.
    """

    def worth(tweet: Tweet) -> tuple[int, str]:
        text = tweet[1]
        stocks = len(set(re.findall(r"\$[A-Z]\S*", text)))
        words = set(re.findall(r"(?<![$\w])[a-z]{3,}", text))
        return len(words) - 2 * max(0, stocks - 1), tweet[0]

    chosen: list[str] = []
    room = max_words
    for _, text in sorted(tweets, key=worth, reverse=True):
        words = text.split()
        if len(words) <= room:
            chosen.append(text)
            room -= len(words)
        elif not chosen:
            return [" ".join(words[:room])]
    return chosen


def _sentence(tokens: list[str]) -> str:
    """Tokens as a readable line: `$ aapl` is $AAPL; user names, links and the retweet mark are left out."""
    kept = [token for token in tokens if token not in ("AT_USER", "URL", "rt", "\u200b")]
    text = " ".join(kept)
    text = re.sub(r"\$ ([a-z][a-z.\-]*)", lambda match: f"${match[1].upper()}", text)
    text = re.sub(r"([$#(]) (?=\w)", r"\1", text)
    text = re.sub(r" ([,.!?:;%)…])", r"\1", text)
    return text.strip(" -:|")
