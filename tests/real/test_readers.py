"""The real datasets, where FINTUNE_DATA_DIR holds them: sizes, splits, and what is left out."""

import os
from collections import Counter
from pathlib import Path

import pytest

from fintune.config import Recipe
from fintune.data.datasets import prepare
from fintune.data.download import download
from fintune.data.quality import Dropped, text_key
from fintune.data.registry import DATASETS
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
    "stocknet": {"train": 16010, "validation": 1763, "test": 2694},
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
    assert Counter(record.split for record in records) == SIZES[name]
    assert len({record.id for record in records}) == len(records)
    assert name == "stocknet" or not dropped


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
        "tweets outside the days that are predicted": 338,
        "tweets that repeat an earlier one on the stock": 19559,
        "stock-days without tweets": 22585,
        "stock-days with repeated tweets only": 305,
    }
    # 504 trading days: 85 stocks have all of them, AGFS 280 and BABA 324, and GMRE was listed later.
    assert len(records) + 22585 + 305 == 85 * 503 + 279 + 323
    assert all(abs(record.target) < 30 for record in records)
    assert max(len(record.text.replace("\n- ", " ").split()) for record in records) <= 123


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


def test_prepared_splits_share_no_text_and_no_company(tmp_path, read):
    for name in ("financial_phrasebank", "twitter_financial_news", "financial_qa_10k"):
        read(name)  # skips where one is missing
    recipe = Recipe.model_validate(
        {
            "multi_task": {"task_weights": {"sentiment": 1, "headline": 1, "qa": 1}},
            "data": {"dir": FOLDER, "prepared_dir": str(tmp_path / "prepared")},
        }
    )
    prepared = prepare(recipe)
    counts = {name: entry["counts"] for name, entry in prepared.manifest["tasks"].items()}
    assert counts == {
        "sentiment": {"train": 3265, "validation": 363, "test": 1212},
        "headline": {"train": 8482, "validation": 942, "test": 2388},
        "qa": {"train": 5690, "validation": 600, "test": 700},
    }
    for name in counts:
        splits = [prepared.records(name, split) for split in ("train", "validation", "test")]
        for i, one in enumerate(splits):
            for other in splits[i + 1 :]:
                assert not {text_key(r.text) for r in one} & {text_key(r.text) for r in other}
                assert not {r.group for r in one if r.group} & {r.group for r in other if r.group}
    assert prepared.manifest["tasks"]["qa"]["dropped"]["malformed rows"] == 3
