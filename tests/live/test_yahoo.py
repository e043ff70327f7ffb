"""yfinance itself, its session led to a loopback server that answers in Yahoo's shapes."""

import json
from datetime import date
from urllib.parse import urlsplit, urlunsplit

import pytest
import requests
import yfinance
from feed_server import Reply
from requests.adapters import HTTPAdapter

from fintune.errors import DataError
from fintune.live.items import ProviderError
from fintune.live.yahoo import YahooNews, YahooPrices

NEWS = "/xhr/ncp?queryRef=latestNews&serviceKey=ncp_fin"


class Inward(HTTPAdapter):
    """Sends every request to one server, whatever host it is for."""

    def __init__(self, base):
        self.base = urlsplit(base)
        super().__init__()

    def send(self, request, **kwargs):
        parts = urlsplit(request.url)
        request.url = urlunsplit((self.base.scheme, self.base.netloc, parts.path, parts.query, ""))
        return super().send(request, **kwargs)


@pytest.fixture
def yahoo(server, tmp_path_factory):
    """The session, and a server without cookies or crumbs."""
    yfinance.set_tz_cache_location(str(tmp_path_factory.getbasetemp() / "yfinance"))
    session = requests.Session()
    session.trust_env = False
    session.mount("https://", Inward(server.url))
    server.routes["/v1/test/getcrumb"] = Reply(b"crumb")
    return session


def story(id, title, **content):
    inner = {
        "title": title,
        "summary": "More of it.",
        "pubDate": "2026-03-02T14:30:00Z",
        "provider": {"displayName": "Our Wire"},
        "canonicalUrl": {"url": f"https://wire.example/{id}"},
    }
    return {"id": id, "content": {**inner, **content}}


def stream(*stories):
    return Reply(json.dumps({"data": {"tickerStream": {"stream": list(stories)}}}).encode())


def asked(body):
    return json.loads(body)["serviceConfig"]["s"][0]


def test_news_on_several_stocks_is_one_item_that_names_them_all(server, yahoo):
    shared = story("a", "Chip makers fall")
    by_symbol = {"ACM": stream(shared, story("b", "Acme hires")), "BLT": stream(shared)}
    server.routes[NEWS + "&crumb=crumb"] = lambda m, p, h, body: by_symbol[asked(body)]
    poll = YahooNews(["ACM", "BLT"], yahoo).poll({})
    assert {item.title: item.symbols for item in poll.items} == {
        "Chip makers fall": ("ACM", "BLT"),
        "Acme hires": ("ACM",),
    }
    assert (poll.items[0].source, poll.items[0].published) == ("Our Wire", "2026-03-02T14:30:00+00:00")
    assert poll.problem == ""


def test_a_story_of_another_shape_is_left_out_and_said(server, yahoo):
    odd = [{"id": "x", "headline": "New shape"}, None, story("", "No id"), story("c", "")]
    server.routes[NEWS + "&crumb=crumb"] = stream(
        *[s for s in odd if s], story("d", "Fine", pubDate=None, provider=None, canonicalUrl=None)
    )
    poll = YahooNews(["ACM"], yahoo).poll({})
    assert [(item.title, item.link, item.published) for item in poll.items] == [("Fine", "", "")]
    assert "ACM: 3 of 4 stories" in poll.problem


def test_a_rate_limit_is_waited_out(server, yahoo):
    server.routes[NEWS + "&crumb=crumb"] = Reply(status=429)
    server.routes[NEWS] = Reply(status=429)
    with pytest.raises(ProviderError, match="too many requests") as caught:
        YahooNews(["ACM"], yahoo).poll({})
    assert caught.value.retry_after >= 60


def chart(symbol, days, closes):
    quote = {"open": closes, "high": closes, "low": closes, "close": closes, "volume": [1] * len(closes)}
    meta = {
        "symbol": symbol,
        "currency": "USD",
        "exchangeTimezoneName": "America/New_York",
        "timezone": "EST",
        "gmtoffset": -18000,
        "instrumentType": "EQUITY",
        "dataGranularity": "1d",
        "range": "",
        "priceHint": 2,
        "regularMarketTime": days[-1],
        "regularMarketPrice": closes[-1],
        "validRanges": ["1d", "max"],
        "currentTradingPeriod": {
            name: {"timezone": "EST", "start": days[-1], "end": days[-1] + 23400, "gmtoffset": -18000}
            for name in ("pre", "regular", "post")
        },
    }
    indicators = {"quote": [quote], "adjclose": [{"adjclose": [c / 2 for c in closes]}]}
    result = {"meta": meta, "timestamp": days, "indicators": indicators}
    return Reply(json.dumps({"chart": {"result": [result], "error": None}}).encode())


def test_prices_are_adjusted_closes_by_day(server, yahoo):
    opens = [1772461800, 1772548200]  # 2026-03-02 and 03, 09:30 in New York
    real = chart("ACM", opens, [100.0, 110.0])

    def answer(method, path, headers, body):
        return real

    server.routes = Routes(server.routes, "/v8/finance/chart/ACM", answer)
    closes = YahooPrices(yahoo).closes("ACM", date(2026, 3, 2), date(2026, 3, 3))
    assert closes == {"2026-03-02": 50.0, "2026-03-03": 55.0}


def test_an_outage_of_prices_is_one_sentence(server, yahoo):
    # A symbol of its own: yfinance keeps what it had for others.
    server.routes = Routes(server.routes, "/v8/", lambda *_: Reply(b"busy", status=503))
    with pytest.raises(DataError, match="Yahoo Finance gave no prices of OUT"):
        YahooPrices(yahoo).closes("OUT", date(2026, 3, 2), date(2026, 3, 3))


class Routes(dict):
    """Routes with one more for all paths of a beginning, as yfinance puts times into its addresses."""

    def __init__(self, routes, beginning, answer):
        super().__init__(routes)
        self.beginning, self.answer = beginning, answer

    def get(self, path, default=None):
        return self.answer if path.startswith(self.beginning) else super().get(path, default)
