"""The real datasets, where FINTUNE_DATA_DIR holds them: sizes, splits, and what is left out."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest

from fintune.data.raw.download import download
from fintune.data.raw.registry import DATASETS
from fintune.data.records import Dropped
from fintune.tasks.base import Record

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FINTUNE_DATA_DIR is not set: no real data")

SIZES = {
    "financial_phrasebank": {"train": 3634, "test": 1212},
    "twitter_financial_news": {"train": 9543, "test": 2388},
    "ectsum": {"train": 1681, "validation": 249, "test": 495},
    "financial_qa_10k": {None: 7000},
    "tatqa": {None: 1668},
    "fiqa_sa": {"train": 954, "test": 219},
    "stocknet": {"train": 16020, "validation": 1749, "test": 2690},
    "stocknet_nowcast": {"train": 16019, "validation": 1751, "test": 2681},
    "stocknet_movement": {"train": 9502, "validation": 1231, "test": 1777},
    "fiqa_sentiment": {"train": 954, "test": 219},
    "twitter_sentiment": {"train": 9543, "test": 2388},
}


@pytest.fixture(scope="module")
def read():
    cache = {}

    def read(name):
        if name not in cache:
            if not all((Path(FOLDER) / path).is_file() for path in DATASETS[name].paths):
                pytest.skip(f"{name} is not in {FOLDER}")
            cache[name] = list(DATASETS[name].read(Path(FOLDER)))
        return [item for item in cache[name] if isinstance(item, Record)], [
            item for item in cache[name] if isinstance(item, Dropped)
        ]

    return read


@pytest.mark.parametrize("name", SIZES)
def test_every_dataset_has_its_known_size(read, name):
    records, dropped = read(name)
    expected = SIZES[name]
    if name == "tatqa" and len(DATASETS[name].found(Path(FOLDER))) == 3:  # the mirror has the dev part alone
        expected = {"train": 13215, "validation": 1668, "test": 1669}
    assert Counter(record.split for record in records) == expected
    assert len({record.id for record in records}) == len(records)
    assert name.startswith("stocknet") or not dropped


def test_phrasebanks_test_split_is_what_the_datasets_library_gives(read):
    from datasets import Dataset

    records, _ = read("financial_phrasebank")
    whole = Dataset.from_dict({"id": [record.id for record in records]})
    theirs = whole.train_test_split(seed=42)["test"]["id"]
    assert {record.id for record in records if record.split == "test"} == set(theirs)


def test_stocknet_accounts_for_every_stock_day_it_leaves_out(read):
    records, dropped = read("stocknet")
    counts = {item.reason: item.count for item in dropped if item.reason != "malformed rows"}
    assert counts == {
        "tweets outside the sessions that are used": 337,
        "tweets that repeat an earlier one on the stock": 19569,
        "stock-days without tweets": 22625,
        "stock-days with repeated tweets only": 273,
    }
    # 504 trading days: 85 stocks have all of them, AGFS 280 and BABA 324, and GMRE was listed later.
    assert len(records) + 22625 + 273 == 85 * 503 + 279 + 323
    assert all(abs(record.target) < 30 for record in records)
    assert max(len(record.text.replace("\n- ", " ").split()) for record in records) <= 123


def test_stocknets_views_agree_on_the_moves_and_only_the_nowcast_reads_their_session(read):
    from fintune.data.raw.readers.stocknet import DOWN, UP, close_of

    forecast, nowcast, movement = (
        {record.id: record for record in read(name)[0]}
        for name in ("stocknet", "stocknet_nowcast", "stocknet_movement")
    )
    assert all(forecast[id].target == nowcast[id].target for id in forecast.keys() & nowcast.keys())
    for record in nowcast.values():
        assert record.time == close_of(record.id[-10:])
    for record in forecast.values():
        assert record.time < close_of(record.id[-10:])
    moved = {id: record.target for id, record in forecast.items() if not DOWN <= record.target < UP}
    assert {id: "up" if target > 0 else "down" for id, target in moved.items()} == {
        id: record.target for id, record in movement.items()
    }


def test_tatqas_answers_carry_their_scale_and_their_type(read):
    records, _ = read("tatqa")
    kinds = Counter(record.kind for record in records if record.id.startswith("tatqa_dataset_dev"))
    assert kinds == {"arithmetic": 718, "span": 701, "multi-span": 217, "count": 32}
    assert all(record.derivation for record in records if record.kind == "arithmetic")
    # An answer from the table can be read in its text, once its scale is taken off.
    spans = [record for record in records if record.kind == "span"]
    found = [
        re.sub(r"( thousand| million| billion|%)$", "", record.target) in record.text for record in spans
    ]
    assert sum(found) / len(found) > 0.97


def test_links_and_byte_order_marks_are_gone(read):
    headlines, _ = read("twitter_financial_news")
    assert not any("https://t.co" in record.text for record in headlines)
    sentences, _ = read("financial_phrasebank")
    assert not any(record.text.startswith("\ufeff") or "\r" in record.text for record in sentences)


def test_a_files_copy_is_genuine(tmp_path):
    if not (Path(FOLDER) / DATASETS["fiqa_sa"].paths[0]).is_file():
        pytest.skip(f"fiqa_sa is not in {FOLDER}")
    said = []
    assert download(["fiqa_sa"], tmp_path, said.append) == []
    assert download(["fiqa_sa"], tmp_path, said.append) == []
    assert "copied" in said[0] and "already there" in said[1]
    assert (tmp_path / DATASETS["fiqa_sa"].paths[0]).read_bytes() == (
        Path(FOLDER) / DATASETS["fiqa_sa"].paths[0]
    ).read_bytes()
