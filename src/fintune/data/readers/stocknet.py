"""StockNet (Xu and Cohen, ACL 2018): a stock's tweets → its next adjusted-close change, in percent.

A window runs from one trading day of the stock up to, not including, the next one, as in the paper: the
tweets of a Friday and the weekend after it stand before Monday's change. The target is
100 · (close of the next trading day / close of the window's trading day - 1). Days are UTC days, and a
tweet is not told apart by the hour of the close: those sent before it may repeat what is already priced.

Splits go by the day that is predicted: train before 2015-08-01, validation before 2015-10-01, test
before 2016-01-01.
"""

from __future__ import annotations

import bisect
import csv
import io
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path

from fintune.data.quality import Dropped, Split
from fintune.data.readers.archives import members
from fintune.tasks.base import Record

MAX_WORDS = 120
"""Words of tweets in one record."""
_FIRST_DAY = "2014-01-01"
_ENDS: tuple[tuple[Split, str], ...] = (
    ("train", "2015-08-01"),
    ("validation", "2015-10-01"),
    ("test", "2016-01-01"),
)
_FILE = r"(?:tweet/preprocessed/(?P<stock>[^/]+)/(?P<day>\d{4}-\d\d-\d\d)|price/raw/(?P<priced>[^/]+)\.csv)"

Tweet = tuple[str, str]
"""When it was sent (day and time, sortable), and its text."""


def stocknet(path: Path, max_words: int = MAX_WORDS) -> Iterator[Record | Dropped]:
    """A record per stock and trading day with tweets, by stock and day."""
    tweets: dict[str, dict[str, list[Tweet]]] = {}
    closes: dict[str, dict[str, float]] = {}
    for match, text in members(path, _FILE):
        name = match.string.partition("/")[2] if match.string.startswith("./") else match.string
        if match["priced"]:
            closes[match["priced"]] = yield from _closes(text, f"{path.name}:{name}")
        else:
            day = yield from _tweets(text, match["day"], f"{path.name}:{name}")
            tweets.setdefault(match["stock"], {})[match["day"]] = day
    counts: dict[str, int] = {}
    for stock in sorted(closes):
        yield from _windows(stock, closes[stock], tweets.pop(stock, {}), path.name, max_words, counts)
    unpriced = sum(len(day) for days in tweets.values() for day in days.values())
    if unpriced:
        counts["tweets of stocks without prices"] = unpriced
    for reason, count in counts.items():
        yield Dropped(reason, path.name, count=count)


def _closes(text: str, where: str) -> Generator[Dropped, None, dict[str, float]]:
    """Day → adjusted close of a price file; yields what cannot be read."""
    closes: dict[str, float] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        try:
            closes[row["Date"]] = float(row["Adj Close"])
        except (KeyError, TypeError, ValueError):
            yield Dropped("malformed rows", f"{where}:{number}", "it has no date or adjusted close")
    return closes


def _tweets(text: str, day: str, where: str) -> Generator[Dropped, None, list[Tweet]]:
    """The tweets of a stock's day; yields what cannot be read."""
    tweets: list[Tweet] = []
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            row = json.loads(line)
            tweets.append((f"{day} {row['created_at'][11:19]}", _sentence(row["text"])))
        except (json.JSONDecodeError, KeyError, TypeError):
            yield Dropped("malformed rows", f"{where}:{number}", "it is not a tweet with a text and a time")
    return tweets


def _windows(
    stock: str,
    closes: dict[str, float],
    tweets: dict[str, list[Tweet]],
    file: str,
    max_words: int,
    counts: dict[str, int],
) -> Iterator[Record]:
    """A stock's records in order of time; adds to `counts` what has no place in one."""

    def count(reason: str, number: int) -> None:
        if number:
            counts[reason] = counts.get(reason, 0) + number

    days = sorted(closes)
    windows: dict[int, list[Tweet]] = {}
    outside = 0
    for day, sent in tweets.items():
        start = bisect.bisect_right(days, day) - 1  # the last trading day up to this one
        if start < 0 or start + 1 >= len(days) or not _FIRST_DAY <= days[start + 1] < _ENDS[-1][1]:
            outside += len(sent)
        else:
            windows.setdefault(start, []).extend(sent)
    count("tweets outside the days that are predicted", outside)

    seen: set[str] = set()
    for start in range(len(days) - 1):
        before, after = days[start], days[start + 1]
        if before < _FIRST_DAY or after >= _ENDS[-1][1]:
            continue
        sent = windows.get(start, [])
        if not sent:
            count("stock-days without tweets", 1)
            continue
        fresh = []
        for tweet in sorted(sent):
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
            target=round(100 * (closes[after] / closes[before] - 1), 4),
            split=next(split for split, end in _ENDS if after < end),
            id=f"{file}:{stock}/{after}",
            source="stocknet",
        )


def _most_informative(tweets: list[Tweet], max_words: int) -> list[str]:
    """The tweets that say most, best first, as many as `max_words` hold; at least one, cut to fit.

    A tweet's worth is its number of different words of three or more letters, less two for each stock it
    names beyond the first (lists of stocks are mostly advertising); of equals, the later one is better.
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
