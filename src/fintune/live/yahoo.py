"""News and daily prices from Yahoo Finance through yfinance.

yfinance is an unofficial client: Yahoo's terms allow personal use, and its responses may change or stop at
any time. Responses in an unexpected shape are skipped and reported, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Any

from fintune.errors import DataError, MissingExtraError
from fintune.live.items import SUMMARY_CHARACTERS, Cursor, Item, Poll, ProviderError, plain, safe_link, utc
from fintune.live.market import Closes

NEWS_PER_SYMBOL = 20
_RATE_LIMIT_SECONDS = 900.0
"""Yahoo does not say how long to wait."""


def _yfinance() -> Any:
    try:
        import yfinance
    except ImportError:
        raise MissingExtraError("Yahoo Finance", "live") from None
    yfinance.config.debug.hide_exceptions = False  # an outage must not look like a day without news
    return yfinance


class YahooNews:
    """The latest news about some symbols."""

    name = "yahoo_news"

    def __init__(self, symbols: Sequence[str], session: Any = None) -> None:
        """Args: session: your own requests or curl_cffi session; None lets yfinance create one.

        Raises:
            MissingExtraError: yfinance is not installed.
        """
        self.symbols = list(dict.fromkeys(symbols))
        self._session = session
        _yfinance()

    def __str__(self) -> str:
        return f"Yahoo Finance: {', '.join(self.symbols)}"

    def poll(self, cursor: Cursor) -> Poll:
        """The news of every symbol (see `Provider.poll`); fails only if all symbols fail."""
        yf = _yfinance()
        items: dict[str, Item] = {}
        problems: list[str] = []
        for symbol in self.symbols:
            try:
                stories = yf.Ticker(symbol, session=self._session).get_news(count=NEWS_PER_SYMBOL)
            except yf.exceptions.YFRateLimitError:
                raise ProviderError("too many requests", retry_after=_RATE_LIMIT_SECONDS) from None
            except Exception as error:  # yfinance's own errors, and those of two HTTP clients
                problems.append(f"{symbol}: {plain(error, 120) or type(error).__name__}")
                continue
            odd = 0
            for story in stories:
                item = _item(story, symbol)
                if item is None:
                    odd += 1
                elif known := items.get(item.id):
                    both = (*known.symbols, symbol)
                    items[item.id] = Item(**{**vars(known), "symbols": both})
                else:
                    items[item.id] = item
            if odd:
                problems.append(f"{symbol}: {odd} of {len(stories)} stories have an unexpected shape")
        if problems and not items and len(problems) == len(self.symbols):
            raise ProviderError("; ".join(problems)[:300])
        found = sorted(items.values(), key=lambda item: item.published)
        return Poll(found, {}, "; ".join(problems)[:300])


def _item(story: Any, symbol: str) -> Item | None:
    content = story.get("content") if isinstance(story, dict) else None
    if not isinstance(content, dict) or not story.get("id") or not plain(content.get("title")):
        return None
    provider, address = content.get("provider"), content.get("canonicalUrl")
    publisher = plain(provider.get("displayName"), 80) if isinstance(provider, dict) else ""
    try:
        published = utc(datetime.fromisoformat(str(content.get("pubDate"))))
    except ValueError:
        published = ""
    return Item(
        id=f"yahoo:{plain(story['id'], 64)}",
        source=publisher or "Yahoo Finance",
        title=plain(content["title"]),
        summary=plain(content.get("summary"), SUMMARY_CHARACTERS),
        link=safe_link(address.get("url") if isinstance(address, dict) else ""),
        published=published,
        symbols=(symbol,),
    )


class YahooPrices:
    """Daily closes, adjusted for splits and dividends."""

    def __init__(self, session: Any = None) -> None:
        self._session = session
        _yfinance()

    def closes(self, symbol: str, first: date, last: date) -> Closes:
        """See `Prices.closes`."""
        yf = _yfinance()
        try:
            table = yf.Ticker(symbol, session=self._session).history(
                start=first.isoformat(),
                end=(last + timedelta(days=1)).isoformat(),  # yfinance excludes the end
                interval="1d",
                auto_adjust=True,
                actions=False,
            )
        except (yf.exceptions.YFTickerMissingError, yf.exceptions.YFInvalidPeriodError):
            return {}
        except Exception as error:
            why = plain(error, 160) or type(error).__name__
            raise DataError(f"Yahoo Finance gave no prices of {symbol}: {why}.") from None
        closes = {moment.date().isoformat(): float(price) for moment, price in table["Close"].items()}
        return {day: price for day, price in closes.items() if price > 0}  # also drops nan
