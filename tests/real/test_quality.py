"""Leaks in the real datasets, as docs/data.md states them: within each one, and none across."""

import itertools
import os
from pathlib import Path

import pytest

from fintune.cli import main
from fintune.config import Recipe
from fintune.data.prepare.dataset import load_prepared
from fintune.data.quality.decontaminate import decontaminate
from fintune.data.quality.held_out import HeldOut
from fintune.data.raw.registry import DATASETS
from fintune.data.records import text_key
from fintune.tasks.base import Record

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FINTUNE_DATA_DIR is not set: no real data")

DEFAULT = Path(__file__).parents[2] / "configs" / "default.yaml"
NAMES = ("financial_phrasebank", "twitter_financial_news", "fiqa_sa")


def records(name, split):
    if not all((Path(FOLDER) / path).is_file() for path in DATASETS[name].paths):
        pytest.skip(f"{name} is not in {FOLDER}")
    items = DATASETS[name].read(Path(FOLDER))
    return [item for item in items if isinstance(item, Record) and item.split == split]


def test_phrasebank_twitter_and_fiqa_leak_within_but_not_across():
    held_out = HeldOut()
    for name in NAMES:
        for record in records(name, "test"):
            held_out.add(name, record)
    found = {}
    for name in NAMES:
        for record in records(name, "train"):
            for test_set, match in held_out.find_record(record).items():
                key = (name, test_set, "exact" if match.exact else "near")
                found[key] = found.get(key, 0) + 1
    assert found == {
        ("financial_phrasebank", "financial_phrasebank", "exact"): 5,
        ("financial_phrasebank", "financial_phrasebank", "near"): 6,
        ("twitter_financial_news", "twitter_financial_news", "exact"): 69,
        ("twitter_financial_news", "twitter_financial_news", "near"): 67,
        ("fiqa_sa", "fiqa_sa", "exact"): 1,
        ("fiqa_sa", "fiqa_sa", "near"): 1,
    }


def test_the_published_twitter_training_file_is_cleaned_of_what_its_test_file_holds(tmp_path, monkeypatch):
    records("twitter_financial_news", "test")
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(folder))  # no other test set is read
    (folder / "twitter_financial_news").symlink_to(Path(FOLDER) / "twitter_financial_news")
    recipe = Recipe.model_validate({"data": {"dir": str(folder), "prepared_dir": str(tmp_path / "none")}})
    train = folder / "twitter_financial_news" / "sent_train.csv"
    found = decontaminate(train, tmp_path / "clean.csv", recipe, say=lambda line: None)
    assert (found.rows, len(found.removed)) == (9543, 136)
    again = decontaminate(tmp_path / "clean.csv", tmp_path / "twice.csv", recipe, say=lambda line: None)
    assert (again.rows, len(again.removed)) == (9407, 0)
    assert (tmp_path / "twice.csv").read_bytes() == (tmp_path / "clean.csv").read_bytes()


def test_the_public_datasets_pass_strict_as_prepared_by_default_and_share_no_text_and_no_company(
    tmp_path, monkeypatch, capsys
):
    """As the default recipe prepares them, but StockNet, which takes a minute to read, and ECTSum."""
    for name in ("financial_phrasebank", "twitter_financial_news", "financial_qa_10k"):
        if not (Path(FOLDER) / name).is_dir():
            pytest.skip(f"{name} is not in {FOLDER}")
        (tmp_path / name).symlink_to(Path(FOLDER) / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path))
    weights = "multi_task.task_weights={sentiment: 1, headline: 1, qa: 1}"
    assert main(["data", "prepare", "--strict", "--config", str(DEFAULT), "--set", weights]) == 0
    assert "; 176 texts that repeat a held-out one were left out." in capsys.readouterr().out
    prepared = load_prepared("data/processed")
    counts = {name: entry["counts"] for name, entry in prepared.manifest["tasks"].items()}
    assert counts == {
        "sentiment": {"train": 3259, "validation": 362, "test": 1212},
        "headline": {"train": 6000, "validation": 935, "test": 2388},  # at most so many, says the recipe
        "qa": {"train": 1600, "validation": 600, "test": 300},
    }
    for name in counts:
        splits = [prepared.records(name, split) for split in ("train", "validation", "test")]
        for one, other in itertools.combinations(splits, 2):
            assert not {text_key(r.text) for r in one} & {text_key(r.text) for r in other}
            assert not {r.group for r in one if r.group} & {r.group for r in other if r.group}
    assert prepared.manifest["tasks"]["qa"]["dropped"]["malformed rows"] == 3
