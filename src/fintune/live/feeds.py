"""Reads RSS and Atom feeds (through feedparser) and JSON Feed, asking only for new content.

An address in, items out. Uses conditional requests (ETag, Last-Modified), Retry-After, and the pause that the
feed or its server asks for (`ttl`, `max-age`). Malformed XML gives the readable items, and a problem.
"""

from __future__ import annotations

import calendar
import hashlib
import io
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from fintune.data.raw.fetch import wait_asked
from fintune.data.storage import shown
from fintune.errors import MissingExtraError
from fintune.live.items import (
    SUMMARY_CHARACTERS,
    Cursor,
    Item,
    Poll,
    ProviderError,
    plain,
    safe_link,
    symbols_in,
    utc,
)
from fintune.live.web import Limits, RefusedAddressError, WebError, ask

MAX_ENTRIES = 500
"""The most entries per poll: the first ones in the feed, which are the newest."""
_LONGEST_WISH = 3600.0
"""The longest pause between polls, even if a feed asks for more."""
_LONGEST_RETRY_AFTER = 24 * 3600.0
_ENTITY = re.compile(rb"<!ENTITY[^>]{0,100000}>?")
_ACCEPT = (
    "application/rss+xml, application/atom+xml, application/feed+json, application/xml;q=0.9, "
    "text/xml;q=0.8, */*;q=0.1"
)
_MALFORMED = "malformed: "
_OLDEST = "1980"
"""Earlier dates are not news dates but misread nonsense."""


class Feed:
    """One feed."""

    def __init__(
        self,
        url: str,
        web: requests.Session,
        *,
        symbol: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Args: symbol: the stock of all its items; None reads `$AAPL` and `(NYSE: IBM)` in titles.

        Raises:
            MissingExtraError: feedparser is not installed.
        """
        try:
            import feedparser  # noqa: F401
        except ImportError:
            raise MissingExtraError("Reading feeds", "live") from None
        self.url, self.symbol, self.limits = url, symbol, limits or Limits()
        self.name = f"feed:{hashlib.sha256(url.encode()).hexdigest()[:12]}"
        self.host = urlsplit(url).hostname or shown(url)
        self._web = web

    def __str__(self) -> str:
        return shown(self.url)

    def poll(self, cursor: Cursor) -> Poll:
        """The feed's current items; none if it has not changed. See `Provider.poll`."""
        headers = {"Accept": _ACCEPT}
        if etag := cursor.get("etag"):
            headers["If-None-Match"] = etag
        if modified := cursor.get("modified"):
            headers["If-Modified-Since"] = modified
        try:
            answer = ask(self._web, "GET", self.url, headers=headers, limits=self.limits)
        except RefusedAddressError as error:
            raise ProviderError(str(error).rstrip("."), final=False) from None
        except WebError as error:
            raise ProviderError(str(error)) from None
        if answer.status == 304:
            return Poll(cursor=cursor, wait_seconds=_max_age(answer.headers))
        if answer.status == 410:
            raise ProviderError("it is gone for good (HTTP 410)", final=True)
        if answer.status != 200:
            raise ProviderError(f"HTTP {answer.status}", retry_after=retry_after(answer.headers))
        items, problem, wish = parse(answer.body, answer.headers, answer.url, self.symbol, self.url)
        # If a feed could not be read completely, ask for it again: the next response may be better.
        known = {} if problem.startswith(_MALFORMED) else {"etag": "etag", "modified": "last-modified"}
        kept = {key: answer.headers[name][:500] for key, name in known.items() if name in answer.headers}
        return Poll(items, kept, problem, max(wish, _max_age(answer.headers)))


def parse(
    body: bytes, headers: Mapping[str, str], url: str, symbol: str | None = None, feed: str = ""
) -> tuple[list[Item], str, float]:
    """A feed's items, oldest first, with its problem and the seconds it asks for between polls.

    Args:
        feed: the address that names the feed, if redirects lead to another `url`.

    Raises:
        ProviderError: it is not a feed.
    """
    json_feed = body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
    title, entries, problem, ttl = _json_feed(body) if json_feed else _xml_feed(body, headers, url)
    source = plain(title, 80) or (urlsplit(url).hostname or "")
    found = [_item(entry, source, symbol, feed or url) for entry in entries[:MAX_ENTRIES]]
    items = [item for item in found if item is not None]
    problems = [problem] if problem else []
    if len(items) < len(found):
        problems.append(f"{len(found) - len(items)} of {len(found)} entries have neither title nor text")
    if len(entries) > MAX_ENTRIES:
        problems.append(f"{len(entries)} entries, of which only the first {MAX_ENTRIES} are used")
    items.sort(key=lambda item: item.published)  # stable; undated items come first
    wish = re.fullmatch(r"\s*(\d{1,6})\s*", str(ttl or ""))
    return items, "; ".join(problems), min(60.0 * int(wish[1]), _LONGEST_WISH) if wish else 0.0


_Content = tuple[Any, list[Any], str, Any]
"""A feed's title, feedparser's entries, the problem, and the wished minutes between polls."""


def _xml_feed(body: bytes, headers: Mapping[str, str], url: str) -> _Content:
    """RSS or Atom.

    Entities that the document declares are removed, so none is expanded. Nested declarations, and those in
    UTF-16, are refused. If an encoding hides declarations from this check, expat's own expansion limit
    applies.
    """
    import feedparser

    if b"\0" in body and _ENTITY.search(body.replace(b"\0", b"")):
        raise ProviderError("it declares entities in UTF-16")
    body = _ENTITY.sub(b"", body)
    if b"<!ENTITY" in body:
        raise ProviderError("it declares entities within entities")
    # As a stream, because feedparser would open a string that looks like an address or a path.
    told = {"content-location": url, "content-type": headers.get("content-type", "")}
    try:
        found = feedparser.parse(io.BytesIO(body), response_headers=told)
    except Exception as error:  # the parser reads untrusted input
        raise ProviderError(f"it cannot be read ({type(error).__name__})") from None
    problem = ""
    # Only XML errors count: a wrong Content-Type is common and harmless.
    if found.bozo and not isinstance(
        found.bozo_exception, feedparser.CharacterEncodingOverride | feedparser.NonXMLContentType
    ):
        problem = _MALFORMED + plain(found.bozo_exception, 120)
    if not found.get("version") and not found.entries:
        raise ProviderError(f"it is not a feed{f' ({problem})' if problem else ''}")
    return found.feed.get("title"), found.entries, problem, found.feed.get("ttl")


def _json_feed(body: bytes) -> _Content:
    """JSON Feed 1.1 (jsonfeed.org)."""
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise ProviderError("it is not a feed (unreadable JSON)") from None
    items = found.get("items")
    if "jsonfeed.org/version" not in str(found.get("version")) or not isinstance(items, list):
        raise ProviderError("it is not a feed")
    names = {
        "id": ("id",),
        "title": ("title",),
        "link": ("url", "external_url"),
        "summary": ("summary", "content_text", "content_html"),
        "published": ("date_published", "date_modified"),
    }
    entries = [
        {field: next(filter(None, map(item.get, keys)), None) for field, keys in names.items()}
        if isinstance(item, dict)
        else {}
        for item in items
    ]
    return found.get("title"), entries, "", None


def _item(entry: Any, source: str, symbol: str | None, feed: str) -> Item | None:
    """An entry as an item; its text replaces a missing title; None if it has neither."""
    content: Any = next(iter(entry.get("content") or ()), {})
    summary = entry.get("summary") or content.get("value")
    title = plain(entry.get("title")) or plain(summary)
    if not title:
        return None
    link = safe_link(entry.get("link"))
    # Feeds may give all entries one id, and two feeds may share ids: combine the id with feed and title.
    key = f"{feed}\n{entry.get('id') or link or source}\n{title}"
    return Item(
        id=hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32],
        source=source,
        title=title,
        summary=plain(summary, SUMMARY_CHARACTERS),
        link=link,
        published=_published(entry),
        symbols=(symbol,) if symbol else symbols_in(title),
    )


def _published(entry: Any) -> str:
    """An entry's publication time: (milli)seconds since 1970, feedparser's reading, or ISO 8601; else ""."""
    text = str(entry.get("published") or entry.get("updated") or "").strip()
    moment = entry.get("published_parsed") or entry.get("updated_parsed")
    try:
        if re.fullmatch(r"\d{9,13}(\.\d+)?", text):
            seconds = float(text) / (1000 if float(text) >= 1e11 else 1)
            found = datetime.fromtimestamp(seconds, UTC)
        elif moment:
            found = datetime.fromtimestamp(calendar.timegm(moment), UTC)
        else:
            found = datetime.fromisoformat(text)
            found = found.replace(tzinfo=found.tzinfo or UTC)
        told = utc(found)
    except (ValueError, OverflowError, OSError):
        return ""
    return told if told >= _OLDEST else ""


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds of a Retry-After header (a number or a date), at most a day; 0 without one."""
    return min(wait_asked(headers.get("retry-after")), _LONGEST_RETRY_AFTER)


def _max_age(headers: Mapping[str, str]) -> float:
    found = re.search(r"\bmax-age=(\d{1,9})", headers.get("cache-control", ""))
    return min(float(found[1]), _LONGEST_WISH) if found else 0.0
