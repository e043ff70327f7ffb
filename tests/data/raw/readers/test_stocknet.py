"""StockNet: what is known before a move, what explains it, and that the future changes nothing."""

import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from raw_files import archive

from fintune.data.raw.readers.stocknet import close_of, stocknet, stocknet_movement, stocknet_nowcast
from fintune.data.records import Dropped
from fintune.tasks.base import Record

# 2015-07-30 is a Thursday; Saturday and Sunday have no prices.
PRICES = {
    "2015-07-29": 100,
    "2015-07-30": 100,
    "2015-07-31": 110,
    "2015-08-03": 99,
    "2015-08-04": 99.2,
}
TWEETS = {
    "2015-07-29T21:00": "evening news on $ ab",
    "2015-07-30T10:00": "rt AT_USER $ ab sees 5 % more sales , says chief URL",
    "2015-07-30T19:59": "$ ab $ cd $ ef alerts",
    "2015-07-30T20:00": "$ ab surprises at the close",
    "2015-07-31T10:00": "rt AT_USER $ ab sees 5 % more sales, says chief",
    "2015-08-01T10:00": "weekend news on $ ab",
    "2015-08-04T19:00": "too late to predict",
}


def written(path, tweets=TWEETS, prices=PRICES, more=()):
    files = dict(more)
    for sent, text in tweets.items():
        moment = datetime.fromisoformat(sent).replace(tzinfo=UTC)
        line = {"text": text.split(), "created_at": f"{moment:%a %b %d %H:%M:%S %z %Y}"}
        name = f"tweet/preprocessed/AB/{sent[:10]}"
        files[name] = files.get(name, "") + json.dumps(line) + "\n"
    rows = "".join(f"{day},1,{close}\n" for day, close in prices.items())
    files["price/raw/AB.csv"] = f"Date,Open,Adj Close\n{rows}2015-08-05,1,null\n"
    return archive(path, files)


@pytest.fixture
def path(tmp_path):
    more = {
        "tweet/preprocessed/AB/2015-07-28": "{bad\n",
        "tweet/preprocessed/ZZ/2015-07-30": '{"text": [], "created_at": "Thu Jul 30 10:00:00 +0000 2015"}\n',
    }
    return written(tmp_path / "s.tar.gz", more=more)


def records(items):
    return [item for item in items if isinstance(item, Record)]


def day(record):
    return record.id.rpartition("/")[2]


def test_a_forecast_reads_the_session_that_ends_before_its_move_begins(path):
    found = {day(r): r for r in records(stocknet(path))}
    assert list(found) == ["2015-07-31", "2015-08-03", "2015-08-04"]
    assert found["2015-07-31"].text == (
        "Tweets on $AB:\n- $AB sees 5% more sales, says chief\n- evening news on $AB\n- $AB $CD $EF alerts"
    )
    assert (found["2015-07-31"].target, found["2015-07-31"].split) == (10.0, "train")
    assert found["2015-08-03"].text == "Tweets on $AB:\n- $AB surprises at the close"  # sent after that close
    assert (found["2015-08-03"].target, found["2015-08-03"].split) == (-10.0, "validation")
    assert found["2015-08-04"].text == "Tweets on $AB:\n- weekend news on $AB"
    assert {r.kind for r in found.values()} == {"forecast"}


def test_a_nowcast_reads_the_session_of_its_move_and_says_so(path):
    found = {day(r): r for r in records(stocknet_nowcast(path))}
    assert list(found) == ["2015-07-30", "2015-07-31", "2015-08-03", "2015-08-04"]
    assert "at the close" in found["2015-07-31"].text and "weekend" in found["2015-08-03"].text
    assert {(r.kind, r.source) for r in found.values()} == {("nowcast", "stocknet_nowcast")}


def test_every_text_is_known_at_its_time_and_no_forecast_after_its_move_began(tmp_path):
    begin = datetime(2015, 7, 29, tzinfo=UTC)
    tweets = {f"{begin + timedelta(minutes=20 * i):%Y-%m-%dT%H:%M}": f"word{i}" for i in range(72 * 7)}
    sent = {word: f"{moment}:00+00:00" for moment, word in tweets.items()}
    path = written(tmp_path / "s.tar.gz", tweets)
    days = sorted(PRICES)
    for view, lag in ((stocknet, 1), (stocknet_nowcast, 0)):
        found = records(view(path, max_words=1000))
        words = [(word, record) for record in found for word in record.text.split() if word in sent]
        assert len(words) > 250 and len({word for word, _ in words}) == len(words)
        for word, record in words:
            number = days.index(day(record)) - lag
            assert record.time == close_of(days[number])
            assert sent[word] < record.time and (not number or sent[word] >= close_of(days[number - 1]))


def test_the_close_follows_new_yorks_clock_and_its_half_days():
    assert close_of("2015-07-31") == "2015-07-31T20:00:00+00:00"
    assert close_of("2015-01-30") == "2015-01-30T21:00:00+00:00"
    assert close_of("2014-11-28") == "2014-11-28T18:00:00+00:00"


def test_movement_drops_small_moves_and_counts_them(tmp_path):
    prices = dict(zip(PRICES, [100, 100, 99.5, 100.04725, 100.597], strict=True))  # 0, -0.5, 0.55, 0.5495 %
    tweets = {f"{day}T10:00": f"news of {day}" for day in PRICES}
    items = list(stocknet_movement(written(tmp_path / "s.tar.gz", tweets, prices)))
    assert [(day(r), r.target) for r in records(items)] == [("2015-08-03", "up")]
    assert [(i.reason, i.count) for i in items if isinstance(i, Dropped) and "neither" in i.reason] == [
        ("moves from -0.5 % to 0.55 %, neither up nor down", 3)
    ]


def test_all_that_is_left_out_is_counted(path):
    dropped = [item for item in stocknet(path) if isinstance(item, Dropped)]
    assert {(d.reason, d.count) for d in dropped if d.reason != "malformed rows"} == {
        ("stock-days without tweets", 1),
        ("tweets outside the sessions that are used", 1),
        ("tweets that repeat an earlier one on the stock", 1),
        ("tweets of stocks without prices", 1),
    }
    assert [d.where for d in dropped if d.reason == "malformed rows"] == [
        "s.tar.gz:tweet/preprocessed/AB/2015-07-28:1",
        "s.tar.gz:price/raw/AB.csv:7",
    ]


def test_a_record_keeps_to_its_budget_of_words(path):
    found = records(stocknet(path, max_words=5))
    assert all(len(r.text.replace("- ", "").split()) <= 3 + 5 for r in found)
    assert found[0].text == "Tweets on $AB:\n- $AB sees 5% more sales,"


@pytest.mark.parametrize("view", [stocknet, stocknet_nowcast, stocknet_movement])
@pytest.mark.parametrize(("split", "end"), [("train", "2015-08-01"), ("validation", "2015-10-01")])
def test_changing_the_future_changes_nothing_of_the_past(tmp_path, view, split, end):
    chance = random.Random(0)
    first = datetime(2015, 6, 1, tzinfo=UTC)
    days = [f"{first + timedelta(days=i):%Y-%m-%d}" for i in range(160)]
    prices = {day: 100 + 10 * chance.random() for day in days if datetime.fromisoformat(day).weekday() < 5}
    words = "sales costs guidance margin dividend recall".split()
    tweets = {
        f"{day}T{hour:02}:{chance.randrange(60):02}": " ".join(chance.choices(words, k=4))
        for day in days
        for hour in chance.sample(range(24), 3)
    }
    known = close_of(max(day for day in prices if day < end))
    later = [sent for sent in tweets if f"{sent}:00+00:00" >= known]
    shuffled = dict(zip(later, chance.sample([tweets[sent] for sent in later], len(later)), strict=True))
    for sent in chance.sample(later, len(later) // 3):
        del shuffled[sent]
    changed = {day: close if day < end else 50 + 100 * chance.random() for day, close in prices.items()}
    past = {sent: text for sent, text in tweets.items() if sent not in later}

    before = records(view(written(tmp_path / "a.tar.gz", tweets, prices)))
    after = records(view(written(tmp_path / "a.tar.gz", {**past, **shuffled}, changed)))
    assert [r for r in before if r.split == split] == [r for r in after if r.split == split] != []
    assert before != after
