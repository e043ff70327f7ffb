"""Defines an item of news, and the contract of the providers of items.

A provider is polled now and then, and told where the last poll ended. It knows nothing of models, other
providers, or the time of the next poll.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

TITLE_CHARACTERS = 500
SUMMARY_CHARACTERS = 2000
LINK_CHARACTERS = 2000

Cursor = dict[str, Any]
"""What a provider needs to continue: plain JSON values. {} is the start."""

_CASHTAG = re.compile(r"(?<![\w$])\$([A-Z]{1,5}(?:[.-][A-Z]{1,2})?)\b")
_LISTED = re.compile(r"\((?:NYSE(?: American)?|NASDAQ|Nasdaq|AMEX)\s*:\s*([A-Z]{1,5}(?:[.-][A-Z]{1,2})?)\)")
_ELEMENTS = (
    r"a abbr acronym address article aside audio b base bdi bdo big blockquote body br button canvas "
    r"caption center cite code col colgroup dd del details dfn div dl dt em embed fieldset figcaption "
    r"figure font footer form frame h[1-6] head header hr html i iframe img input ins kbd label li link "
    r"main map mark meta nav noscript object ol option p param picture pre q s samp script section select "
    r"small source span strike strong style sub summary sup svg table tbody td template textarea tfoot th "
    r"thead time title tr tt u ul var video wbr \w+:\w+"
).replace(" ", "|")
_TAG = re.compile(
    rf"</?(?:{_ELEMENTS})(?:\s[^<>=]{{0,500}}=[^<>]{{0,2000}})?\s*/?>|<[!?][^<>]{{0,2000}}>", re.IGNORECASE
)
"""HTML's elements only, because headlines contain «EPS <$1 but sales >$2bn» and «Apple <AAPL.O>»."""
# Controls could command the terminal; bidirectional overrides disguise a text.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")


@dataclass(frozen=True)
class Item:
    """A piece of news, in plain text."""

    id: str
    """Stays the same whenever this provider delivers the item again."""
    source: str
    """The name of the feed or the publisher."""
    title: str
    summary: str = ""
    link: str = ""
    """A web address, or ""."""
    published: str = ""
    """In UTC and ISO 8601, from the source; "" if unknown."""
    symbols: tuple[str, ...] = ()
    """The stocks it is about, if known."""


@dataclass(frozen=True)
class Poll:
    """A provider's answer."""

    items: list[Item] = field(default_factory=list)
    """Oldest first; items of earlier polls may be among them."""
    cursor: Cursor = field(default_factory=dict)
    problem: str = ""
    """A problem despite the response, as half a sentence."""
    wait_seconds: float = 0.0
    """Seconds that the source asks to wait before the next poll."""


class Provider(Protocol):
    """A source of items."""

    name: str
    """Unique in a run: the cursor is stored under this name."""

    def poll(self, cursor: Cursor) -> Poll:
        """The items available now.

        Raises:
            ProviderError: there is no usable response.
        """
        ...


class ProviderError(Exception):
    """Why there are no items, as half a sentence."""

    def __init__(self, why: str, *, retry_after: float = 0.0, final: bool = False) -> None:
        """Args: retry_after: seconds the source asks to wait; final: never ask again."""
        super().__init__(why)
        self.retry_after = retry_after
        self.final = final


def plain(text: Any, limit: int = TITLE_CHARACTERS) -> str:
    """Foreign text as one safe line: no markup, no control characters, at most `limit` characters."""
    text = str(text or "")[: 20 * limit]
    text = _TAG.sub(" ", html.unescape(_TAG.sub(" ", text)))
    text = " ".join(_UNSEEN.sub(" ", text).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def safe_link(link: Any) -> str:
    """The link if it is a web address, else ""."""
    text = str(link or "").strip()
    fits = len(text) <= LINK_CHARACTERS and re.match(r"https?://[^\s\"'<>\x00-\x1f]+$", text)
    return text if fits else ""


def symbols_in(text: str) -> tuple[str, ...]:
    """The stocks a text names as `$AAPL` or `(NYSE: IBM)`, in order."""
    found = [(m.start(), m[1]) for pattern in (_CASHTAG, _LISTED) for m in pattern.finditer(text)]
    return tuple(dict.fromkeys(symbol for _, symbol in sorted(found)))


def utc(moment: datetime) -> str:
    """A moment in the form stored everywhere here: UTC, ISO 8601, to the second, sortable."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


@dataclass
class SourceState:
    """A provider's state, stored in the output folder."""

    title: str = ""
    cursor: dict[str, Any] = field(default_factory=dict)
    next_poll: float = 0.0
    """Seconds since 1970."""
    not_before: float = 0.0
    """Do not poll before this time, by the source's wish."""
    failures: int = 0
    """In a row."""
    problem: str = ""
    last_answer: str = ""
    items: int = 0
    repeated: int = 0
    gone: bool = False
