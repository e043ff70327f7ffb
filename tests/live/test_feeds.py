"""Feeds of real clients against a real server: conditional requests, faults, hostile XML."""

import json
import time
from email.utils import formatdate
from xml.sax.saxutils import escape

import pytest
from feed_server import Reply, rss
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.live.feeds import Feed, parse, retry_after
from fintune.live.items import ProviderError, plain, safe_link, symbols_in
from fintune.live.seen import Seen
from fintune.live.web import Limits, session

URL = "https://wire.example/feed"


def test_items_come_oldest_first_with_time_link_and_stock():
    body = rss("Acme raises guidance $ACM", "Bolt (NYSE: BLT) cuts jobs").replace(b"15:00:00", b"16:30:00", 1)
    items, problem, _ = parse(body, {}, URL)
    assert problem == ""
    assert [(i.title, i.symbols, i.published, i.link, i.source) for i in items] == [
        (
            "Bolt (NYSE: BLT) cuts jobs",
            ("BLT",),
            "2026-03-02T15:00:00+00:00",
            "https://news.example/1",
            "Wire",
        ),
        (
            "Acme raises guidance $ACM",
            ("ACM",),
            "2026-03-02T16:30:00+00:00",
            "https://news.example/0",
            "Wire",
        ),
    ]


def test_an_atom_feed_is_read_too():
    body = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title>Desk</title><entry><id>urn:1</id>
      <title type="html">Profit &lt;b&gt;up&lt;/b&gt; 5 %</title><link href="https://a.example/1"/>
      <updated>2026-03-02T10:00:00-05:00</updated><summary>More.</summary></entry></feed>"""
    (item,), problem, _ = parse(body, {}, URL)
    assert (item.title, item.summary, item.published, problem) == (
        "Profit up 5 %",
        "More.",
        "2026-03-02T15:00:00+00:00",
        "",
    )


def test_a_feed_that_has_not_changed_is_not_sent_again(server, web):
    def answer(method, path, headers, body):
        known = headers.get("if-none-match") == '"v1"' and headers.get("if-modified-since") == "yesterday"
        return Reply(status=304) if known else Reply(
            rss("One"), headers={"ETag": '"v1"', "Last-Modified": "yesterday"}
        )  # fmt: skip

    server.routes["/feed"] = answer
    feed = Feed(server.url + "/feed", web)
    first = feed.poll({})
    again = feed.poll(first.cursor)
    assert [item.title for item in first.items] == ["One"]
    assert (again.items, again.cursor) == ([], first.cursor)
    assert len(server.seen) == 2
    assert server.seen[0][2]["user-agent"].startswith("fintune/")


def test_malformed_xml_gives_what_can_be_read_and_is_asked_for_again(server, web):
    broken = rss("First & foremost", "Second").replace(b"&amp;", b"&").replace(b"</channel></rss>", b"")
    server.routes["/feed"] = Reply(broken, headers={"ETag": '"broken"'})
    poll = Feed(server.url + "/feed", web).poll({})
    assert [item.title for item in poll.items] == ["First & foremost", "Second"]
    assert "malformed" in poll.problem
    assert poll.cursor == {}  # no ETag is kept of a feed that was not whole


@pytest.mark.parametrize("body", [b"", b"<html><body>Sign in</body></html>", b"\x00\xff\xfe\x80", b"{}"])
def test_what_is_no_feed_is_an_error(body):
    with pytest.raises(ProviderError, match="not a feed"):
        parse(body, {}, URL)


def bomb(levels, width, encoding):
    declared = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * width}">' for i in range(1, levels + 1))
    head = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE rss [<!ENTITY l0 "lol">{declared}]>'
    text = rss("A LOL title", "Quiet").decode().replace("<?xml version='1.0'?>", head)
    return text.replace("LOL", f"&l{levels};").encode(encoding)


@pytest.mark.parametrize(("levels", "width"), [(4, 10), (11, 10), (5, 100)])
def test_an_entity_bomb_stays_small(levels, width):
    start = time.process_time()
    items, _, _ = parse(bomb(levels, width, "utf-8"), {}, URL)
    assert "Quiet" in [item.title for item in items]
    assert max(len(item.title) for item in items) < 50
    assert time.process_time() - start < 1


def test_an_entity_within_an_entity_is_refused():
    whole = bomb(11, 10, "utf-8")
    nested = whole.replace(b"<!ENTITY", b'<!ENT<!ENTITY x "">ITY')
    with pytest.raises(ProviderError, match="declares entities"):
        parse(nested, {}, URL)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_an_entity_bomb_in_a_wide_encoding_is_refused(encoding):
    with pytest.raises(ProviderError, match="declares entities"):
        parse(bomb(11, 10, encoding), {}, URL)
    items, _, _ = parse(
        rss("Plain").decode().replace("?>", ' encoding="utf-16"?>', 1).encode("utf-16"), {}, URL
    )
    assert [item.title for item in items] == ["Plain"]


def test_a_document_type_reads_no_file(tmp_path):
    (tmp_path / "secret.txt").write_text("hunter2")
    entity = f'<!DOCTYPE rss [<!ENTITY x SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>'.encode()
    body = rss("Leak: &x;", "Quiet").replace(b"&amp;x;", b"&x;").replace(b"?>", b"?>" + entity, 1)
    try:
        items = parse(body, {}, URL)[0]
    except ProviderError:
        return
    assert not any("hunter2" in item.title + item.summary for item in items)


def test_a_huge_item_is_cut_and_a_huge_feed_refused(server, web):
    server.routes["/item"] = Reply(rss("word " * 100_000))
    server.routes["/feed"] = Reply(rss(*[f"Item {i}" for i in range(30_000)]))
    (item,) = Feed(server.url + "/item", web, limits=Limits(max_bytes=2_000_000)).poll({}).items
    assert len(item.title) <= 500
    with pytest.raises(ProviderError, match="over the limit"):
        Feed(server.url + "/feed", web, limits=Limits(max_bytes=1_000_000)).poll({})


def test_many_entries_are_cut_at_five_hundred():
    items, problem, _ = parse(rss(*[f"Item {i}" for i in range(700)]), {}, URL)
    assert len(items) == 500 and problem == "700 entries, of which only the first 500 are used"


def test_a_large_malformed_feed_is_parsed_in_seconds():
    body = (rss("One")[:-20] + b"<item><title>a &b <c d='" * 90_000)[:300_000]
    start = time.monotonic()
    parse(body, {}, URL)
    assert time.monotonic() - start < 10


def test_too_many_requests_are_answered_by_waiting_as_long_as_asked(server, web):
    server.routes["/feed"] = Reply(status=429, headers={"Retry-After": "120"})
    with pytest.raises(ProviderError, match="HTTP 429") as caught:
        Feed(server.url + "/feed", web).poll({})
    assert caught.value.retry_after == 120


def test_a_feed_that_is_gone_is_not_asked_again(server, web):
    server.routes["/feed"] = Reply(status=410)
    with pytest.raises(ProviderError) as caught:
        Feed(server.url + "/feed", web).poll({})
    assert caught.value.final


def test_a_redirect_of_a_feed_into_a_private_network_is_refused(server, web):
    server.routes["/feed"] = Reply(status=302, headers={"Location": "http://10.0.0.7/feed"})
    with pytest.raises(ProviderError, match=r"10\.0\.0\.7.*private network"):
        Feed(server.url + "/feed", web).poll({})
    with pytest.raises(ProviderError, match="private network"):
        Feed(server.url + "/feed", session()).poll({})


def test_a_server_that_is_down_is_one_short_sentence(server, web):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(ProviderError, match=r"^Connection refused$"):
        Feed(server.url + "/feed", web, limits=Limits(seconds=2)).poll({})


def test_the_pause_a_feed_wishes_is_kept_up_to_an_hour(server, web):
    server.routes["/ttl"] = Reply(rss("One", extra="<ttl>15</ttl>"))
    server.routes["/age"] = Reply(rss("One"), headers={"Cache-Control": "public, max-age=999999"})
    assert Feed(server.url + "/ttl", web).poll({}).wait_seconds == 900
    assert Feed(server.url + "/age", web).poll({}).wait_seconds == 3600


def test_retry_after_may_be_a_date_or_nonsense():
    assert 50 <= retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after({"retry-after": "soon"}) == 0
    assert retry_after({"retry-after": "9" * 30}) == 24 * 3600


def test_foreign_text_cannot_speak_to_a_terminal():
    assert (
        plain("\x1b]0;owned\x07Up \x9b31m5\u202e %\n\n<script>x</script>&lt;b&gt;") == "]0;owned Up 31m5 % x"
    )


@given(st.text())
def test_plain_text_is_one_short_printable_line(text):
    cleaned = plain(text, 50)
    assert len(cleaned) <= 50
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0x202A <= ord(c) <= 0x202E for c in cleaned)
    assert cleaned == cleaned.strip()
    cleaned.encode()


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "data:text/html,x", "//a.example", "http://a b", None]
)
def test_only_links_to_the_web_are_kept(link):
    assert safe_link(link) == ""
    assert safe_link("https://a.example/x?y=1#z") == "https://a.example/x?y=1#z"


def test_stocks_are_read_from_cashtags_and_listings_not_from_amounts():
    assert symbols_in("$AAPL beats, $MSFT and $AAPL; IBM (NYSE: IBM) pays $5 and US$B") == (
        "AAPL",
        "MSFT",
        "IBM",
    )


# Stories that feeds make hard to tell apart ---------------------------------------------------------


def item(title="", guid="", date="Mon, 02 Mar 2026 15:00:00 GMT", text=""):
    parts = {"title": title, "guid": guid, "pubDate": date, "description": text}
    return "<item>" + "".join(f"<{k}>{escape(v)}</{k}>" for k, v in parts.items() if v) + "</item>"


def feed(*items):
    return f"<rss version='2.0'><channel><title>Wire</title>{''.join(items)}</channel></rss>".encode()


def met(*feeds):
    """The titles of the new items of some feeds, in turn, and how many repeat one."""
    seen, titles, repeated = Seen(0.8), [], 0
    for number, body in enumerate(feeds):
        new, again = seen.fresh(parse(body, {}, f"https://{number}.example/feed")[0])
        titles += [story.title for story in new]
        repeated += len(again)
    return titles, repeated


def test_one_guid_for_several_stories_loses_none():
    one, other = "Acme raises its guidance for the year", "Bolt cuts jobs in the north"
    assert met(feed(item(one, "1"), item(other, "1"))) == ([one, other], 0)
    assert met(feed(item(one, "1")), feed(item(other, "1"))) == ([one, other], 0)
    assert met(feed(item(one, "1")), feed(item(one, "1"))) == ([one], 1)
    assert met(feed(item(one, "1")), feed()) == ([one], 0)


def test_an_item_without_a_title_is_known_by_its_text_and_one_without_both_is_counted():
    items, problem, _ = parse(feed(item(text="<p>Rates stay.</p>"), item(guid="7")), {}, URL)
    assert [story.title for story in items] == ["Rates stay."]
    assert problem == "1 of 2 entries have neither title nor text"


@pytest.mark.parametrize(
    "title",
    [
        "EPS <$1 but sales >$2bn",
        "P/E <industry average but ROE> peers",
        "Apple <AAPL.O> rises",
        "a<b and 5 < 6 > 4",
    ],
)
def test_signs_of_comparison_stay_in_a_headline_and_markup_goes(title):
    (story,), _, _ = parse(feed(item(title, "1", text=f"<p class='x'>{escape(title)}</p><br/>")), {}, URL)
    assert (story.title, story.summary) == (title, title)


@pytest.mark.parametrize("date", ["1772463600", "1772463600000", "2026-03-02T15:00:00Z"])
def test_seconds_and_milliseconds_since_1970_are_dates(date):
    (story,), _, _ = parse(feed(item("Sales rose", "1", date)), {}, URL)
    assert story.published == "2026-03-02T15:00:00+00:00"


def test_a_date_that_is_none_is_no_date_of_another_century():
    assert [
        parse(feed(item("Up", "1", date)), {}, URL)[0][0].published for date in ("1772", "0001-01-01")
    ] == ["", ""]


def test_a_json_feed_is_read(server, web):
    made = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": "Wire",
        "items": [
            {"id": "2", "title": "Acme raises $ACM", "url": "https://a.example/2", "content_text": "More."},
            {
                "id": 1,
                "content_html": "<p>Rates <b>stay</b></p>",
                "date_published": "2026-03-02T10:00:00-05:00",
            },
            {"id": "3"},
            7,
        ],
    }
    server.routes["/feed"] = Reply(json.dumps(made).encode(), headers={"ETag": '"j"'})
    poll = Feed(server.url + "/feed", web).poll({})
    assert [(story.title, story.published, story.source, story.link) for story in poll.items] == [
        ("Acme raises $ACM", "", "Wire", "https://a.example/2"),
        ("Rates stay", "2026-03-02T15:00:00+00:00", "Wire", ""),
    ]
    assert (poll.items[0].summary, poll.items[0].symbols) == ("More.", ("ACM",))
    assert poll.problem == "2 of 4 entries have neither title nor text"
    assert poll.cursor == {"etag": '"j"'}
    with pytest.raises(ProviderError, match="not a feed"):
        parse(b'{"a":' * 100_000, {}, URL)


FEEDS = [
    rss("Acme raises guidance $ACM", "Bolt < Cog"),
    b'<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>1</id><title>Up</title></entry></feed>',
    json.dumps(
        {"version": "https://jsonfeed.org/version/1.1", "items": [{"id": "1", "title": "Up"}]}
    ).encode(),
]
ODD = (
    *(b"<!ENTITY a 'x'>", b"&a;", b"&#0;", b"<![CDATA[", b"<item>", b"<title>", b"encoding='utf-7'", b"\0"),
    *(b"\xff\xfe", b"[[[[", b'{"items":', b"null", b"9" * 5000, b"<pubDate>99999999999999</pubDate>"),
)
PIECES = st.binary(max_size=9) | st.sampled_from(ODD)


@settings(max_examples=200)
@given(
    st.sampled_from(FEEDS), st.lists(st.tuples(st.integers(0, 500), st.integers(0, 40), PIECES), max_size=4)
)
def test_whatever_a_feed_sends_gives_items_or_a_sentence(body, changes):
    for at, length, put in changes:
        body = body[:at] + put + body[at + length :]
    try:
        items, _, _ = parse(body, {}, URL)
    except ProviderError:
        return
    assert all(item.id and item.title for item in items)
